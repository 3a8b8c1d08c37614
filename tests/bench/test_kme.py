"""The benchmark of the simulated KMEs does what it counts; its figures are not judged here."""

from bench.kme import CASES, MOST_CPU_US, KmeParameters, kme_markdown, run_kme


def test_every_case_is_measured_against_kmes_of_its_own():
    study = run_kme(KmeParameters(rounds=1, saes=3, connections=2, seconds=0.05))
    assert study.failed == []
    assert [seen.case for seen in study.observations] == list(CASES)
    figures = {seen.case: seen.values for seen in study.observations}
    assert figures["status"]["keys_per_s"] == 0
    assert figures["enc_keys"]["keys_per_s"] == figures["enc_keys"]["requests_per_s"] > 0
    assert figures["enc and dec"]["keys_per_s"] == figures["enc and dec"]["requests_per_s"] > 0
    many = figures["enc and dec of 32"]
    assert many["keys_per_s"] / many["requests_per_s"] == 32
    assert all(values["cpu_us_per_request"] >= 0 for values in figures.values())
    page = kme_markdown(study)
    assert f"{MOST_CPU_US:.0f} µs of CPU time" in page
    assert all(f"| {case} |" in page for case in CASES)

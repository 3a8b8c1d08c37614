"""Reports from fixed records."""

import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import pytest

from bench import __main__ as program
from bench import plots
from bench.__main__ import main
from bench.document import Items, Paragraph, Section, Table, to_html, to_markdown
from bench.pages import Report, readme_tables
from bench.pairs import Kind
from bench.record import Figure, Record, Row
from bench.store import load_record
from bench.study import Goal, Observation, Study
from tests.bench.helpers import HOST, make_record

KINDS = {"qproxy": Kind.SUBJECT, "slow": Kind.PEER, "fast": Kind.PEER, "direct": Kind.LIMIT}
SPEEDS = {
    "qproxy": [160.0, 240.0, 170.0],
    "slow": [100.0, 200.0, 100.0],
    "fast": [100.0, 150.0, 110.0],
    "direct": [1000.0, 1000.0, 1000.0],
}
VOID = {"meta", "br"}


class Balanced(HTMLParser):
    """Fails where elements are not closed in order, and collects what a page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag, attrs) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self.loads += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_startendtag(self, tag, attrs) -> None:
        self.loads += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag


def balanced(page: str) -> Balanced:
    parser = Balanced()
    parser.feed(page)
    assert parser.open == []
    return parser


@pytest.fixture
def record() -> Record:
    made = make_record(SPEEDS, KINDS)
    made.figures = (
        Figure("mb_per_s", "throughput", "MB/s"),
        Figure("cpu_s_per_gb", "CPU time", "s/GB", less_is_better=True),
    )
    made.rows.append(Row("gone", Kind.PEER, skipped="gone is not installed"))
    made.notes.append("a note")
    return made


@pytest.fixture
def study() -> Study:
    made = Study("switchover", "2026-01-31T13:00:00Z", HOST, {"rounds": 1})
    made.goals = [Goal("killed", "fall_s", 1.0), Goal("killed", "lost_bytes", 0)]
    made.observations = [Observation("killed", 0, {"fall_s": 0.5, "lost_bytes": 7.0, "other": 1.0})]
    return made


def test_a_page_is_made_of_headings_tables_lists_and_text() -> None:
    table = Table(["a|b", "n"], [["x", "1"]])
    page = to_markdown([Section("Title", [Paragraph("text"), Items(["one", "two"]), table])])
    assert page == (
        "## Title\n\ntext\n\n- one\n- two\n\n| a\\|b | n |\n| --- | ---: |\n| x | 1 |\n"
    )


def test_html_is_escaped_and_closed() -> None:
    evil = "<script>alert('&')</script>"
    section = Section(evil, [Paragraph(evil), Items([evil]), Table([evil], [[evil]])])
    page = to_html([section], evil)
    balanced(page)
    assert "<script" not in page
    assert page.count("&lt;script&gt;") == 6


def test_a_verdict_has_a_class_of_its_own() -> None:
    table = Table(["verdict"], [["met"], ["missed"], ["undecided (spread)"], ["meteor"]])
    page = to_html([Section("x", [table])], "x")
    for word in ("text met", "text missed", "text undecided"):
        assert f'class="{word}"' in page


def test_the_report_has_goals_first_then_medians_spread_ratios_and_cpu(record, study) -> None:
    page = Report([record, study]).markdown()
    assert page.index("## Goals") < page.index("## throughput") < page.index("## switchover")
    goal = "bulk throughput, one connection | at least 1.5 times the best peer"
    assert f"| {goal} |  |  | met |\n|  |  | down | 1.60 (1.55 to 1.60) of fast | met |" in page
    head = (
        "| pair | throughput, MB/s | ÷ best peer | CPU time, s/GB | ÷ best peer |\n"
        "| --- | ---: | ---: | ---: | ---: |\n"
    )
    assert head in page
    assert "| qproxy | 170 (160 to 240) | 1.60 (1.55 to 1.60) | 1.5 (1.5 to 1.5) |" in page
    assert "| fast | 110 (100 to 150) | best peer |" in page


def test_host_versions_parameters_date_skips_and_caveats_are_on_the_page(record) -> None:
    page = Report([record], missing=["wan: no namespaces"]).markdown()
    for text in (
        "Imaginary CPU, 2 cores, 1 GiB, Linux 1.0 x86_64, CPython 3.11.0, OpenSSL 4.0.0",
        "rounds 3; from 2026-01-31T12:00:00Z",
        "Skipped: gone (gone is not installed).",
        "- gone: skipped, gone is not installed",
        "- fast: 1.0",
        "- a note",
        "- wan: no namespaces",
        "Only ratios from one run mean anything",
    ):
        assert text in page


def test_a_ratio_that_means_nothing_is_marked_and_warned_of(record) -> None:
    record.samples = make_record({**SPEEDS, "qproxy": [90.0, 240.0, 90.0]}, KINDS).samples
    page = Report([record]).markdown()
    assert "| qproxy | 90 (90 to 240) | 0.90 ? (0.82 to 1.60) |" in page
    assert "qproxy ÷ fast: rounds from 0.82 to 1.60: which is ahead is undecided" in page


def test_a_row_with_another_cipher_is_marked_and_named(record) -> None:
    slow, fast = (row for row in record.rows if row.name in ("slow", "fast"))
    slow.facts.append({"cipher": "TLS_AES_256_GCM_SHA384"})
    fast.facts.append({"cipher": "TLS_AES_128_GCM_SHA256", "group": "x25519"})
    record.rows.append(Row("odd", Kind.OTHER, parameters={"cipher": "its own"}))
    page = Report([record]).markdown()
    assert "| fast † | 110" in page
    assert "| slow | 100" in page
    assert "- † fast used TLS_AES_128_GCM_SHA256, not TLS_AES_256_GCM_SHA384: a peer all" in page
    assert "- † odd used its own, not TLS_AES_256_GCM_SHA384: never the best peer" in page
    assert "- fast: 1.0; cipher TLS_AES_128_GCM_SHA256, group x25519" in page


def test_a_study_s_figures_stand_beside_their_goals(study) -> None:
    page = Report([study]).markdown()
    assert "| killed | fall_s | 0.5 (0.5 to 0.5) | at most 1 | met |" in page
    assert "| killed | lost_bytes | 7 (7 to 7) | at most 0 | missed |" in page
    assert "| killed | other | 1 (1 to 1) |  |  |" in page


def test_without_matplotlib_the_page_says_so(record, monkeypatch) -> None:
    monkeypatch.setattr(plots, "missing", lambda: "matplotlib is not installed")
    page = Report([record]).html()
    balanced(page)
    assert "No plots: matplotlib is not installed." in page
    assert "<svg" not in page


def test_plots_are_inline_and_the_page_loads_nothing(record) -> None:
    pytest.importorskip("matplotlib")
    page = Report([record]).html()
    parser = balanced(page)
    assert page.count("<svg") == 2
    assert all(link.startswith("#") for link in parser.loads)
    assert "http" not in re.sub(r'xmlns(:xlink)?="[^"]*"', "", page)
    for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        ET.fromstring(svg)
    assert "throughput: throughput, MB/s (more is better)" in page
    assert "throughput: CPU time, s/GB (less is better)" in page


def test_a_limit_that_dwarfs_the_others_is_cut_off_and_its_figure_written(record) -> None:
    pytest.importorskip("matplotlib")
    throughput, cpu = plots.plots_of(record)
    assert "1000 →" in throughput.svg
    assert "→" not in cpu.svg
    record.samples = make_record({**SPEEDS, "direct": [300.0] * 3}, KINDS).samples
    assert "→" not in plots.plots_of(record)[0].svg


def test_an_empty_report_is_still_a_report() -> None:
    page = Report([], missing=["throughput: broke"]).html()
    balanced(page)
    assert "not measured" in page


def test_the_readme_s_tables_come_from_records(record, study) -> None:
    text = readme_tables([record, study])
    assert "| throughput: throughput, MB/s | down |" in text
    assert "| qproxy | 170 |" in text
    assert "down: 1.60 (1.55 to 1.60) of fast | met |" in text


def test_stored_records_give_the_same_report(record, study, tmp_path: Path) -> None:
    for each in (record, study):
        each.write(tmp_path / f"{each.benchmark}.json")
    files = [tmp_path / "throughput.json", tmp_path / "switchover.json"]
    assert [load_record(path) for path in files] == [record, study]
    assert main(["report", *map(str, files), "--output", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out.md").read_text() == Report([record, study]).markdown()
    assert (tmp_path / "out.html").read_text() == Report([record, study]).html()


def test_the_first_records_had_no_list_of_figures(record, tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    figures, record.figures = record.figures, ()
    record.write(path)
    loaded = load_record(path)
    assert isinstance(loaded, Record)
    assert [(each.title, each.unit) for each in loaded.figures] == [
        (each.title, each.unit) for each in figures
    ]


def test_every_record_that_is_kept_can_be_rendered() -> None:
    kept = sorted((Path(program.__file__).parent / "results").glob("*.json"))
    records = [load_record(path) for path in kept]
    page = Report(records).markdown()
    for record in records:
        assert f"## {record.benchmark}, {record.started}" in page


def test_the_tables_for_the_readme_are_printed(record, tmp_path: Path, capsys) -> None:
    record.write(tmp_path / "record.json")
    assert main(["report", str(tmp_path / "record.json"), "--readme"]) == 0
    assert capsys.readouterr().out == readme_tables([record])


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "not a benchmark's record"),
        ('{"format": 2}', "expected format 1, got 2"),
        ('{"format": 1, "samples": []}', "not a whole record: KeyError('benchmark')"),
        ("[]", "not a whole record"),
    ],
)
def test_a_file_that_is_no_record_is_named(tmp_path: Path, capsys, text, complaint) -> None:
    path = tmp_path / "file.json"
    path.write_text(text)
    assert main(["report", str(path)]) == 1
    assert f"error: {path}: {complaint}" in capsys.readouterr().err


def test_a_file_that_is_missing_is_named(tmp_path: Path, capsys) -> None:
    assert main(["report", str(tmp_path / "none.json")]) == 1
    assert "none.json" in capsys.readouterr().err

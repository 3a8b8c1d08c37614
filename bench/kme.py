"""How many key requests a second the simulated KMEs serve, over mutual TLS with kept connections.

Both KMEs are one process, ``qproxy kme-sim``, as users run it; the SAEs are another one
(:mod:`bench.kme_load`). On a machine with two cores, each has one. The figure that other people's
load on the machine hardly touches is the KMEs' CPU time for each request: its inverse is what one
core serves.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from bench.children import Child, children, cpu_seconds, wait_until
from bench.command import Benchmark
from bench.generator import Program
from bench.host import Host, load_average
from bench.progress import say, told
from bench.rounds import utc_now
from bench.stats import BenchError
from bench.study import Goal, Observation, Study
from qproxy.pki import init_pki

#: Key requests a second that the simulator is to serve on a machine with two cores.
WANTED_REQUESTS_PER_S = 2000
#: What that leaves a request of one core, in microseconds.
MOST_CPU_US = 1e6 / WANTED_REQUESTS_PER_S
#: Cases, those with keys last.
CASES = ("status", "enc_keys", "enc_keys by POST", "enc and dec", "enc and dec of 32")
#: Cases that the goal is about.
_KEY_CASES = ("enc_keys", "enc_keys by POST", "enc and dec")
_WARM_UP_S = 0.5


@dataclass(frozen=True, slots=True)
class KmeParameters:
    """What a run measures.

    Attributes:
        rounds: how often each case is measured, each time against KMEs started afresh.
        saes: SAEs at each KME that are configured.
        connections: pairs of SAEs that ask at the same time, a connection to each KME for each.
        seconds: how long they ask, for each case.
    """

    rounds: int = 5
    saes: int = 150
    connections: int = 4
    seconds: float = 3.0


QUICK = KmeParameters(rounds=1, saes=4, connections=2, seconds=0.3)


def run_kme(parameters: KmeParameters) -> Study:
    """Measure. Progress goes to standard error."""
    study = Study(
        benchmark="kme",
        started=utc_now(),
        host=Host.here(),
        parameters={
            "rounds": parameters.rounds,
            "saes": 2 * parameters.saes,
            "connections": 2 * parameters.connections,
            "seconds": parameters.seconds,
        },
        cases={case: {"requests_at_once": parameters.connections} for case in CASES},
        goals=[Goal(case, "cpu_us_per_request", MOST_CPU_US) for case in _KEY_CASES],
    )
    with tempfile.TemporaryDirectory(prefix="qproxy-bench-") as name:
        directory = Path(name)
        saes = [(f"sae-a{i}", f"sae-b{i}") for i in range(parameters.saes)]
        asking = saes[: parameters.connections]
        init_pki(directory / "pki", names=[sae for pair in asking for sae in pair])
        config = write_kmes(directory, saes)
        for number in range(parameters.rounds):
            try:
                _round(study, number, parameters, config, asking)
            except BenchError as error:
                study.failed.append(f"round {number + 1}: {error}")
                say(study.failed[-1])
    study.finished = utc_now()
    return study


def write_kmes(directory: Path, saes: Sequence[tuple[str, str]]) -> Path:
    """The configuration of two KMEs with as much key as anybody may ask for."""
    files = {
        kme: {
            "listen": "127.0.0.1:0",
            "certificate": f"pki/{kme}.pem",
            "private_key": f"pki/{kme}.key",
            "ca": "pki/ca.pem",
        }
        for kme in ("kme-a", "kme-b")
    }
    homes = {sae: kme for pair in saes for sae, kme in zip(pair, files, strict=True)}
    link = {"key_rate_bps": 1e9, "max_key_count": 1_000_000, "initial_key_count": 1_000_000}
    document = {"kme_sim": {"kmes": files, "saes": homes, "link": link}, "log": {"format": "json"}}
    path = directory / "kme-sim.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path


def _round(
    study: Study,
    number: int,
    parameters: KmeParameters,
    config: Path,
    saes: Sequence[tuple[str, str]],
) -> None:
    with children() as started, Program("client", module="bench.kme_load") as load:
        log = config.parent / f"kme-sim-{number}.log"
        kmes = Child("kme-sim", [sys.executable, "-m", "qproxy", "kme-sim", str(config)], log)
        started.append(kmes)
        wait_until(lambda: _addresses(log) is not None, "the KMEs", [kmes])
        pki = str(config.parent / "pki")
        load.ask("open", 60.0, directory=pki, kmes=_addresses(log), saes=[list(s) for s in saes])
        for case in CASES:
            load.ask("run", 30.0, case=case, seconds=min(_WARM_UP_S, parameters.seconds))
            before = cpu_seconds(kmes.pid)
            seen = load.ask("run", 30.0 + parameters.seconds, case=case, seconds=parameters.seconds)
            used_s = cpu_seconds(kmes.pid) - before
            values = {
                "requests_per_s": seen["requests"] / seen["seconds"],
                "keys_per_s": seen["keys"] / seen["seconds"],
                "cpu_us_per_request": 1e6 * used_s / seen["requests"],
                "p50_us": seen["p50_us"],
                "p99_us": seen["p99_us"],
                "load_average": load_average(),
            }
            study.observations.append(Observation(case, number, values))
            say(f"round {number + 1}  {case}: {told(values)}")
        load.ask("close", 30.0)


def _addresses(log: Path) -> Mapping[str, str] | None:
    """Where the KMEs listen, once their log says so."""
    for line in log.read_text().splitlines():
        if line.startswith("{") and "kme_sim_ready" in line:
            addresses: Mapping[str, str] = json.loads(line)["kmes"]
            return addresses
    return None


_COLUMNS = (
    ("requests_per_s", "requests/s", ".0f"),
    ("keys_per_s", "keys/s", ".0f"),
    ("cpu_us_per_request", "KMEs' CPU, µs/request", ".0f"),
    ("p50_us", "p50, µs", ".0f"),
    ("p99_us", "p99, µs", ".0f"),
)


def kme_markdown(study: Study) -> str:
    """The record as a page."""
    head = ["case", *(title for _, title, _ in _COLUMNS)]
    rows = [
        [case, *(study.cell(case, name, form) for name, _, form in _COLUMNS)]
        for case in study.cases
    ]
    notes = [
        f"the goal, {WANTED_REQUESTS_PER_S} key requests/s on two cores, one of them the SAEs', is"
        f" {MOST_CPU_US:.0f} µs of CPU time for each",
    ]
    return study.page(head, rows, notes)


def _run(options: argparse.Namespace) -> tuple[Study, str]:
    parameters = replace(QUICK if options.quick else KmeParameters(), rounds=options.rounds)
    study = run_kme(parameters)
    return study, kme_markdown(study)


KME = Benchmark("kme", "key requests a second that the simulated KMEs serve", 5, _run, minutes=3)

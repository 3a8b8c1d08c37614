"""How long a tunnel takes to come up, beside a plain TLS 1.3 handshake with the same certificates.

- **qproxy tunnel**: from the TCP connection to the first epoch, by the clock of the gateway that
  dials (``handshake_ms`` in its log): TLS, then an ML-KEM-1024 exchange with a QKD key in it. One
  gateway dials many tunnels, far enough apart not to touch each other. The near end has its keys in
  stock before; where the far end has to fetch one from its KME, the tunnel waits for it. The first
  tunnel of a gateway, to which everything is new, is a case of its own.
- **qproxy tunnel, without QKD**: the same under policy ``off``. The difference is the QKD key.
- **plain TLS 1.3**: from the TCP connection to the far end's word that it is done, too; two
  programs with blocking sockets, the same contexts, groups and certificates, the same pauses.
- **in memory**: both ends of each in one process, without sockets, tasks or a KME: the work alone.

``tls_ms`` is the TLS part, until the near end's side of it is over.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from bench.children import Child, cpu_seconds, wait_until
from bench.command import Benchmark
from bench.generator import GRACE_S, Program, Service
from bench.handshake_parts import InMemory
from bench.host import Host, OthersMeter, load_average
from bench.pairs import Kind, Running, Site
from bench.pairs.qproxy import QProxy, gateway_events
from bench.progress import bar, say
from bench.record import Figure, Record, Row, Sample
from bench.record_report import record_markdown
from bench.rounds import utc_now
from bench.stats import BenchError
from qproxy.pki import KeyAlgorithm, init_pki

TUNNEL = "qproxy tunnel"
WITHOUT_QKD = "qproxy tunnel, without QKD"
PLAIN = "plain TLS 1.3"
TUNNEL_IN_MEMORY = "qproxy tunnel, in memory"
PLAIN_IN_MEMORY = "plain TLS 1.3, in memory"
#: What a tunnel's handshake may take, as a multiple of the plain one's.
GOAL = 1.2
#: Pause before each plain handshake, as between a gateway's tunnels, in seconds.
_PAUSE_S = 0.1
_TUNNELS_UP_S = 20.0
_ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True)
class HandshakeParameters:
    """What a run measures.

    Attributes:
        rounds: how often all of it is measured.
        count: handshakes of each kind in a round; a gateway dials at most 64.
        in_memory: of those in memory.
    """

    rounds: int = 5
    count: int = 20
    in_memory: int = 50


QUICK = HandshakeParameters(rounds=1, count=3, in_memory=3)
_CASES = {KeyAlgorithm.ECDSA_P256: "P-256", KeyAlgorithm.ML_DSA_65: "ML-DSA-65"}


class ManyTunnels(QProxy):
    """A pair whose near gateway dials many tunnels.

    Args:
        tunnels: how many.
        qkd: with QKD keys, demanded by policy.
    """

    def __init__(self, tunnels: int, *, qkd: bool = True) -> None:
        super().__init__(
            TUNNEL if qkd else WITHOUT_QKD,
            peer_settings={"tunnels": tunnels, **({} if qkd else {"policy": "off"})},
            hybrid=qkd,
        )
        self._tunnels = tunnels

    def parameters(self) -> dict[str, str | int]:
        """The number of tunnels, too."""
        return {**super().parameters(), "tunnels": self._tunnels}

    def await_far(self, site: Site, running: Running) -> None:
        """A gateway that dials in vain dials again later, and then several tunnels at once."""
        far = running.proxies["far"]
        wait_until(
            lambda: (
                any(gateway_events(far, "gateway_started"))
                and any(gateway_events(far, "link_state"))
            ),
            f"{self.name} (far)",
            running.processes,
        )


def run_handshake(parameters: HandshakeParameters) -> Record:
    """Measure. Progress goes to standard error."""
    pairs = [ManyTunnels(parameters.count, qkd=qkd) for qkd in (True, False)]
    record = Record(
        benchmark="handshake",
        started=utc_now(),
        host=Host.here(),
        parameters={**asdict(parameters), "pause_s": _PAUSE_S},
        value="handshake_ms",
        cost="",
        figures=(
            Figure("handshake_ms", "handshake, p50", "ms", less_is_better=True),
            Figure("tls_ms", "TLS part, p50", "ms", less_is_better=True),
            Figure("handshake_max_ms", "handshake, longest", "ms", less_is_better=True),
        ),
        rows=[
            *(
                Row(pair.name, kind, pair.version(), pair.parameters())
                for pair, kind in zip(pairs, (Kind.SUBJECT, Kind.OTHER), strict=True)
            ),
            Row(PLAIN, Kind.PEER, "pyOpenSSL, blocking sockets", {"resumption": "off"}),
            Row(TUNNEL_IN_MEMORY, Kind.LIMIT, "both ends in one process"),
            Row(PLAIN_IN_MEMORY, Kind.LIMIT, "both ends in one process"),
        ],
    )
    with (
        tempfile.TemporaryDirectory(prefix="qproxy-bench-") as temporary,
        bar(record.benchmark, parameters.rounds * len(_CASES)) as advance,
    ):
        base = Path(temporary)
        for algorithm in _CASES:
            init_pki(base / algorithm, algorithm=algorithm)
        for number in range(parameters.rounds):
            for algorithm, case in _CASES.items():
                directory = base / f"{number}-{algorithm}"
                _measure(record, parameters, number, case, pairs, base / algorithm, directory)
                advance()
    record.finished = utc_now()
    return record


def _measure(
    record: Record,
    parameters: HandshakeParameters,
    number: int,
    case: str,
    pairs: Sequence[ManyTunnels],
    pki: Path,
    directory: Path,
) -> None:
    """One round of one kind of certificate; what fails is named in its row."""
    measures: dict[str, Callable[[], _Samples]] = {
        **{pair.name: partial(_tunnels, pair, pki, directory, parameters, case) for pair in pairs},
        PLAIN: partial(_plain, pki, parameters, case),
        TUNNEL_IN_MEMORY: partial(_in_memory, pki, parameters, case),
    }
    rows = {row.name: row for row in record.rows}
    for name, measure in measures.items():
        row = rows[name]
        if row.failed is not None:
            continue
        meter = OthersMeter(partial(cpu_seconds, os.getpid()))
        try:
            for sample_row, sample_case, values, facts in measure():
                busy = {**values, **meter.values(), "load_average": load_average()}
                record.samples.append(Sample(sample_row, number, sample_case, busy))
                if facts:
                    rows[sample_row].facts.append(facts)
                took = values["handshake_ms"]
                say(f"round {number + 1}  {sample_row:<25} {sample_case:<25} {took:.3g} ms")
        except (BenchError, OSError) as error:
            row.failed = f"round {number + 1}: {error}"
            say(f"{name}: {row.failed}")


_Samples = Iterator[tuple[str, str, Mapping[str, float], Mapping[str, str | int]]]


def _tunnels(
    pair: ManyTunnels, pki: Path, directory: Path, parameters: HandshakeParameters, case: str
) -> _Samples:
    site = Site.make(directory / ("hybrid" if pair.hybrid else "classical"), pki, service_port=9)
    with pair.running(site) as running:
        near = running.proxies["near"]
        wait_until(
            lambda: len(_ups(near)) >= parameters.count,
            f"{parameters.count} tunnels",
            running.processes,
            _TUNNELS_UP_S,
        )
        ups = _ups(near)
        if any(gateway_events(near, "tunnel_not_connected")):
            raise BenchError("tunnels were dialled in vain, and so not apart from each other")
        groups = {event["group"] for event in gateway_events(near, "peer_authenticated")}
    facts: dict[str, str | int] = {**running.facts, "certificates": case}
    if groups:
        facts["group"] = ", ".join(sorted(groups))
    yield pair.name, f"{case}, first tunnel", _from_log(ups[:1]), {}
    yield pair.name, case, _from_log(ups[1:]), facts


def _ups(near: Child) -> list[dict[str, Any]]:
    """Tunnels that came up, in order."""
    return list(gateway_events(near, "tunnel_up"))


def _from_log(ups: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return _values([up["handshake_ms"] for up in ups], [up["tls_ms"] for up in ups])


def _plain(pki: Path, parameters: HandshakeParameters, case: str) -> _Samples:
    module = "bench.tls_handshake"
    with (
        Service(module, str(pki)) as service,
        Program("client", str(pki), module=module) as client,
    ):
        answer = client.ask(
            "handshakes",
            GRACE_S + parameters.count * _PAUSE_S,
            port=service.port,
            # One more: the first connection of a process pays for much that is new to it.
            count=parameters.count + 1,
            pause_s=_PAUSE_S,
        )
    both_ms, client_ms = ([ns / 1e6 for ns in answer[key]] for key in ("both_ns", "client_ns"))
    facts = {"certificates": case, "group": answer["group"]}
    yield PLAIN, f"{case}, first tunnel", _values(both_ms[:1], client_ms[:1]), {}
    yield PLAIN, case, _values(both_ms[1:], client_ms[1:]), facts


def _in_memory(pki: Path, parameters: HandshakeParameters, case: str) -> _Samples:
    command = [sys.executable, "-m", "bench.handshake_parts", str(pki), str(parameters.in_memory)]
    try:
        output = subprocess.run(
            command, capture_output=True, check=True, timeout=GRACE_S, cwd=_ROOT
        ).stdout
    except subprocess.SubprocessError as error:
        raise BenchError(f"handshakes in memory: {error}") from None
    took = [InMemory(**each) for each in json.loads(output)]
    tunnel = _values(
        [1000 * each.tunnel_s for each in took], [1000 * each.tunnel_tls_s for each in took]
    )
    plain_ms = [1000 * each.tls_s for each in took]
    yield TUNNEL_IN_MEMORY, case, tunnel, {}
    yield PLAIN_IN_MEMORY, case, _values(plain_ms, plain_ms), {}


def _values(handshakes_ms: Sequence[float], tls_ms: Sequence[float]) -> dict[str, float]:
    return {
        "count": float(len(handshakes_ms)),
        "handshake_ms": statistics.median(handshakes_ms),
        "handshake_max_ms": max(handshakes_ms),
        "tls_ms": statistics.median(tls_ms),
    }


def _run(options: argparse.Namespace) -> tuple[Record, str]:
    parameters = replace(QUICK if options.quick else HandshakeParameters(), rounds=options.rounds)
    record = run_handshake(parameters)
    return record, record_markdown(record)


HANDSHAKE = Benchmark(
    "handshake", "a tunnel's handshake beside plain TLS 1.3 with the same certificates", 5, _run,
    minutes=2,
)  # fmt: skip

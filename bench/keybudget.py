"""Whether 100 kbit/s of key material carry streams opened as fast as the pair can.

Keys are spent per tunnel and epoch, not per stream: a stream costs none. So the figure that matters
is tunnels times epochs per second, and that is what is measured, with streams opened all the while
to show that they do not come into it. The link starts with no more than one filling of the stock.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import trio

from bench.children import cpu_seconds
from bench.command import Benchmark
from bench.host import Host, load_average
from bench.live import LivePair, LiveSettings, live_pair
from bench.progress import bar, say, told
from bench.rounds import utc_now
from bench.stats import BenchError
from bench.study import Goal, Observation, Study
from qproxy.demo.load import Load
from qproxy.demo.record import Traffic
from qproxy.modes import Mode

#: Key material of the link. Source: one hop of the 2072-km backbone in the goals of the project.
KEY_RATE_BPS = 100_000
#: Size of a key, in bits.
KEY_BITS = 256
#: Connections per second that the link's keys are to carry.
WANTED_STREAMS_PER_S = 10_000
#: Connections opened one after the other in one go.
_BATCH = 256
#: How often the stock is looked at, in seconds.
_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Pool:
    """How many tunnels there are between the pair, each rekeying every second.

    Attributes:
        tunnels: how many.
        key_stock: settings of the stock, where they are not the defaults.
    """

    tunnels: int
    key_stock: Mapping[str, int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """For tables."""
        text = f"{self.tunnels} tunnel{'s' if self.tunnels > 1 else ''}"
        kept = self.key_stock
        return f"{text}, stock {kept['low_water']} to {kept['high_water']}" if kept else text


@dataclass(frozen=True, slots=True)
class KeyBudgetParameters:
    """What a run measures.

    Attributes:
        rounds: how often each pool is measured.
        pools: the pools. The default stock is made for a few tunnels.
        seconds: how long streams are opened.
    """

    rounds: int = 3
    pools: tuple[Pool, ...] = (
        Pool(1),
        Pool(8),
        Pool(32),
        Pool(32, {"low_water": 64, "high_water": 128}),
    )
    seconds: float = 10.0


@dataclass(slots=True)
class _Watch:
    """The stock over time.

    Attributes:
        stock: keys that could be used, at each look.
        stored: keys at the KME, at each look.
    """

    stock: list[int] = field(default_factory=list)
    stored: list[int] = field(default_factory=list)


def run_keybudget(parameters: KeyBudgetParameters) -> Study:
    """Measure. Progress goes to standard error."""
    study = Study(
        benchmark="keybudget",
        started=utc_now(),
        host=Host.here(),
        parameters={
            "rounds": parameters.rounds,
            "seconds": parameters.seconds,
            "key_rate_bps": KEY_RATE_BPS,
            "key_bits": KEY_BITS,
            "rekey_interval_s": 1,
        },
    )
    with (
        tempfile.TemporaryDirectory(prefix="qproxy-bench-") as directory,
        bar(study.benchmark, parameters.rounds * len(parameters.pools)) as advance,
    ):
        for number in range(parameters.rounds):
            for index, pool in enumerate(parameters.pools):
                case = pool.name
                study.cases[case] = asdict(pool)
                place = Path(directory) / f"{number}-{index}"
                place.mkdir(mode=0o700)
                try:
                    seen = trio.run(_repetition, pool, number, parameters, place)
                except BenchError as error:
                    study.failed.append(f"{case}, round {number + 1}: {error}")
                    say(study.failed[-1])
                else:
                    study.observations.append(seen)
                    say(f"round {number + 1}  {case}: {told(seen.values)}")
                advance()
    for case in study.cases:
        study.goals += [
            Goal(case, name, 0)
            for name in ("dry_looks", "classical_epochs", "failed_epochs", "broken_streams")
        ]
        study.goals.append(Goal(case, "share_of_rate", 1.0))
    study.finished = utc_now()
    return study


async def _repetition(
    pool: Pool, number: int, parameters: KeyBudgetParameters, directory: Path
) -> Observation:
    settings = LiveSettings(
        link={"key_rate_bps": KEY_RATE_BPS, "key_size_bits": KEY_BITS, "initial_key_count": 32},
        peer={
            "tunnels": pool.tunnels,
            "rekey": {"interval_s": 1},
            **({"key_stock": dict(pool.key_stock)} if pool.key_stock else {}),
        },
        near={"admin": {"listen": "127.0.0.1:0"}},
    )
    async with live_pair(directory, settings) as pair:
        await pair.wait_for(
            lambda log: len(list(log.find("tunnel_up"))) >= pool.tunnels, 30.0, "all tunnels are up"
        )
        watch, traffic = _Watch(), Traffic()
        await _settle(pair)
        before, cpu = _stock(await pair.status()), _cpu(pair)
        since_s = pair.near.events[-1].at_s
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_watch_stock, pair, watch)
            while trio.current_time() - began < parameters.seconds:
                await Load(pair.port, traffic).short_connections(_BATCH)
            nursery.cancel_scope.cancel()
        elapsed_s = trio.current_time() - began
        after, used = _stock(await pair.status()), _cpu(pair)
        epochs = list(pair.near.find("epoch_committed", since_s=since_s))
        classical = [event for event in epochs if event.fields.get("mode") != Mode.HYBRID]
        spent = (after["confirmed"] - before["confirmed"]) / elapsed_s
        values = {
            "seconds": elapsed_s,
            "streams_per_s": traffic.opened / elapsed_s,
            "broken_streams": float(traffic.failed),
            "lost_bytes": float(traffic.lost_bytes),
            "epochs_per_s": len(epochs) / elapsed_s,
            "classical_epochs": float(len(classical)),
            "failed_epochs": float(len(list(pair.near.find("epoch_failed", since_s=since_s)))),
            "keys_drawn_per_s": (after["drawn"] - before["drawn"]) / elapsed_s,
            "keys_spent_per_s": spent,
            "key_bps_spent": spent * KEY_BITS,
            "share_of_rate": spent * KEY_BITS / KEY_RATE_BPS,
            "stock_low_water": float(min(watch.stock)),
            "kme_low_water": float(min(watch.stored)),
            "dry_looks": float(watch.stock.count(0)),
            "looks": float(len(watch.stock)),
            "load_average": load_average(),
            **{
                f"{name}_cpu_ms_per_stream": 1000 * (used[name] - cpu[name]) / traffic.opened
                for name in cpu
            },
        }
    return Observation(pool.name, number, values)


async def _settle(pair: LivePair) -> None:
    """Let the stock fill up: an empty one at the start says nothing of the run."""
    with trio.move_on_after(10.0):
        while _stock(await pair.status())["low"]:  # noqa: ASYNC110 - another process
            await trio.sleep(_POLL_S)


async def _watch_stock(pair: LivePair, watch: _Watch) -> None:
    while True:
        watch.stock.append(_stock(await pair.status())["available"])
        watch.stored.append((await pair.link())["stored_key_count"])
        await trio.sleep(_POLL_S)


def _stock(status: Mapping[str, Any]) -> Mapping[str, int]:
    """The stock of the only peer."""
    peers = status["peers"]
    stock: Mapping[str, int] = peers[0]["stock"]
    return stock


def _cpu(pair: LivePair) -> dict[str, float]:
    return {name: cpu_seconds(pid) for name, pid in pair.gateway_pids.items()}


_COLUMNS: Sequence[tuple[str, str, str]] = (
    ("streams_per_s", "streams/s", ".0f"),
    ("epochs_per_s", "epochs/s", ".1f"),
    ("keys_drawn_per_s", "keys drawn/s", ".1f"),
    ("keys_spent_per_s", "keys spent/s", ".1f"),
    ("share_of_rate", "of 100 kbit/s", ".3f"),
    ("stock_low_water", "stock, least", ".0f"),
    ("kme_low_water", "KME's store, least", ".0f"),
    ("dry_looks", "looks at an empty stock", ".0f"),
    ("classical_epochs", "classical epochs", ".0f"),
    ("near_cpu_ms_per_stream", "gw-a CPU, ms/stream", ".2f"),
    ("far_cpu_ms_per_stream", "gw-b CPU, ms/stream", ".2f"),
)


def keybudget_markdown(study: Study) -> str:
    """The record as a page, with what follows for more streams than this machine opens."""
    head = ["case", *(title for _, title, _ in _COLUMNS)]
    rows = [
        [case, *(study.cell(case, name, form) for name, _, form in _COLUMNS)]
        for case in study.cases
    ]
    notes = [
        f"the link makes {KEY_RATE_BPS / KEY_BITS:.0f} keys/s; a stream costs no key, a tunnel one"
        " for each epoch",
        *_extrapolated(study),
    ]
    return study.page(head, rows, notes)


def _extrapolated(study: Study) -> list[str]:
    """What WANTED_STREAMS_PER_S would take; from the case with the fewest tunnels."""
    case = next(iter(study.cases), "")
    cpu = [study.spread(case, f"{name}_cpu_ms_per_stream") for name in ("near", "far")]
    if cpu[0] is None or cpu[1] is None:
        return []
    per_process = 1000 / max(cpu[0].median, cpu[1].median)
    tunnels = -(-WANTED_STREAMS_PER_S // int(per_process))
    bps = tunnels * KEY_BITS
    return [
        f"not measured but computed: by its CPU time a pair of gateway processes opens at most"
        f" {per_process:.0f} streams/s on cores of its own, so {WANTED_STREAMS_PER_S} streams/s"
        f" take {tunnels} pairs; with one tunnel each and a rekey every second they spend"
        f" {tunnels} keys/s, {bps / 1000:.1f} kbit/s, {bps / KEY_RATE_BPS:.0%} of the link"
    ]


def _run(options: argparse.Namespace) -> tuple[Study, str]:
    if options.quick:
        parameters = KeyBudgetParameters(options.rounds, pools=(Pool(1), Pool(2)), seconds=2.0)
    else:
        parameters = KeyBudgetParameters(options.rounds)
    study = run_keybudget(parameters)
    return study, keybudget_markdown(study)


KEYBUDGET = Benchmark(
    "keybudget", "100 kbit/s of keys against streams opened as fast as the pair can", 3, _run,
    minutes=3,
)  # fmt: skip

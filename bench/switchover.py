"""How fast a live tunnel falls back and climbs back, and what streams notice of it.

Each repetition has a pair of gateways of its own, so that no fault is damped by the one before. It
runs under load for a while, then the fault is injected, the fall of both gateways is waited for,
then it is healed, and their climb is waited for.

- **sign to classical**: from the first line in either gateway's log that tells of something wrong
  (``kme_call_failed``, ``epoch_failed`` or a ``link_state`` other than healthy) to the first
  classical-only epoch of the gateway that had it last;
- **injected to classical**: the same from the moment before the simulator was told;
- **healed to hybrid**: from the moment before it was told to restore everything to the first
  hybrid epoch of the gateway that had it last;
- **gap**: the longest time between two arrivals on any long-lived stream around the fall (from the
  first sign on, at least MIN_WINDOW_S) and around the climb, as a multiple of the p99 gap before
  the fault. That of a quiet window as long (or all of the quiet time, if that is less) stands
  beside it: what the machine does to streams anyway.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import trio

from bench import mixed_load
from bench.command import Benchmark
from bench.faults import CLIMB_GOAL_S, FAULTS, GAP_GOAL, Fault, chosen_faults
from bench.gateway_log import first_bad_sign
from bench.host import Host, cpu_times, load_average
from bench.live import LivePair, live_pair
from bench.mixed_load import MixedLoad
from bench.progress import bar, say
from bench.rounds import utc_now
from bench.stats import BenchError, percentile
from bench.study import Goal, Observation, Study
from qproxy.modes import Mode

#: The load runs for so long before anything is measured, in seconds.
_WARM_UP_S = 1.0
#: Longest wait for a fall, in seconds: stored keys may last a while.
_FALL_S = 60.0
#: Longest wait for a climb, in seconds.
_CLIMB_S = 60.0
#: The load goes on for so long behind a switch, in seconds.
_BEHIND_S = 0.5
#: Shortest window in which gaps are looked for, in seconds.
MIN_WINDOW_S = 1.0


@dataclass(frozen=True, slots=True)
class SwitchoverParameters:
    """What a run measures.

    Attributes:
        rounds: how often each fault is injected and healed.
        quiet_s: load without a fault before each, for the p99 gap.
        holds_s: how long the pair stays classical-only before it is healed, one after the other:
            waits between attempts grow with an outage.
    """

    rounds: int = 5
    quiet_s: float = 4.0
    holds_s: tuple[float, ...] = (1.5, 5.0, 12.0)


@dataclass(slots=True)
class _Moments:
    """Of one repetition, by the wall clock."""

    quiet_from_s: float = 0.0
    injected_s: float = 0.0
    classical_s: float = 0.0
    healed_s: float = 0.0
    hybrid_s: float = 0.0


def run_switchover(faults: Sequence[Fault], parameters: SwitchoverParameters) -> Study:
    """Measure. Progress goes to standard error."""
    study = Study(
        benchmark="switchover",
        started=utc_now(),
        host=Host.here(),
        parameters={
            **asdict(parameters),
            "holds_s": ", ".join(f"{hold_s:g}" for hold_s in parameters.holds_s),
            "long_streams": mixed_load.LONG_STREAMS,
            "short_workers": mixed_load.SHORT_WORKERS,
            "short_pause_s": mixed_load.SHORT_PAUSE_S,
            "bulk_bytes": mixed_load.BULK_BYTES,
            "bulk_pause_s": mixed_load.BULK_PAUSE_S,
            "policy": "prefer",
        },
        cases={fault.name: fault.particulars for fault in faults},
        goals=[goal for fault in faults for goal in _goals(fault)],
    )
    with (
        tempfile.TemporaryDirectory(prefix="qproxy-bench-") as directory,
        bar(study.benchmark, parameters.rounds * len(faults)) as advance,
    ):
        for number in range(parameters.rounds):
            for index, fault in enumerate(faults):
                place = Path(directory) / f"{number}-{index}"
                place.mkdir(mode=0o700)
                try:
                    seen = trio.run(_repetition, fault, number, parameters, place)
                except BenchError as error:
                    study.failed.append(f"{fault.name}, round {number + 1}: {error}")
                    say(study.failed[-1])
                else:
                    study.observations.append(seen)
                    say(_line(seen))
                advance()
    study.finished = utc_now()
    return study


def _goals(fault: Fault) -> list[Goal]:
    goals = [
        Goal(fault.name, "heal_to_hybrid_s", CLIMB_GOAL_S, below=True),
        Goal(fault.name, "fall_gap_ratio", GAP_GOAL),
        Goal(fault.name, "climb_gap_ratio", GAP_GOAL),
        Goal(fault.name, "lost_bytes", 0),
        Goal(fault.name, "broken_streams", 0),
        Goal(fault.name, "broken_tunnels", 0),
        Goal(fault.name, "log_differences", 0),
    ]
    if fault.fall_goal_s is not None:
        goals.append(Goal(fault.name, "sign_to_classical_s", fault.fall_goal_s, below=True))
    return goals


async def _repetition(
    fault: Fault, number: int, parameters: SwitchoverParameters, directory: Path
) -> Observation:
    async with live_pair(directory, fault.settings) as pair:
        load, moments = MixedLoad(pair.port), _Moments()
        busy, idle = cpu_times()
        async with load.running():
            await trio.sleep(_WARM_UP_S)
            moments.quiet_from_s = load.now_s()
            await trio.sleep(parameters.quiet_s)
            moments.injected_s = load.now_s()
            for action in fault.actions:
                await pair.control(**action)
            moments.classical_s = await pair.wait_for_mode(
                Mode.CLASSICAL_ONLY, moments.injected_s, _FALL_S
            )
            await trio.sleep(parameters.holds_s[number % len(parameters.holds_s)])
            moments.healed_s = load.now_s()
            await pair.control(action="restore")
            moments.hybrid_s = await pair.wait_for_mode(Mode.HYBRID, moments.healed_s, _CLIMB_S)
            await trio.sleep(2 * _BEHIND_S)
        busy, idle = (
            after - before for after, before in zip(cpu_times(), (busy, idle), strict=True)
        )
    values = _values(pair, load, moments) | {
        "cpu_busy": busy / (busy + idle),
        "load_average": load_average(),
    }
    return Observation(fault.name, number, values, _facts(pair, moments, load))


def _values(pair: LivePair, load: MixedLoad, moments: _Moments) -> dict[str, float]:
    sign = first_bad_sign(pair.logs, moments.injected_s)
    if sign is None:
        raise BenchError("both gateways fell back, and neither logged why")
    sign_s = min(sign.at_s, moments.classical_s)
    window_s = max(MIN_WINDOW_S, moments.classical_s - sign_s + _BEHIND_S)
    fall_end_s = moments.classical_s + _BEHIND_S
    climb_end_s = moments.hybrid_s + _BEHIND_S
    quiet = load.gaps_s(moments.quiet_from_s, moments.injected_s)
    p99_s = percentile(quiet, 0.99)
    longest = {
        "fall": max(load.gaps_s(fall_end_s - window_s, fall_end_s)),
        "climb": max(load.gaps_s(climb_end_s - MIN_WINDOW_S, climb_end_s)),
        "quiet": load.longest_quiet_gap_s(
            moments.quiet_from_s,
            moments.injected_s,
            min(window_s, moments.injected_s - moments.quiet_from_s),
        ),
    }
    near, far = (log.mode_changes for log in pair.logs)
    traffic = load.traffic
    return {
        "sign_to_classical_s": moments.classical_s - sign_s,
        "inject_to_classical_s": moments.classical_s - moments.injected_s,
        "heal_to_hybrid_s": moments.hybrid_s - moments.healed_s,
        "p99_gap_ms": 1000 * p99_s,
        **{f"{name}_gap_ms": 1000 * gap_s for name, gap_s in longest.items()},
        **{f"{name}_gap_ratio": gap_s / p99_s for name, gap_s in longest.items()},
        "verified_bytes": traffic.verified_bytes,
        "lost_bytes": traffic.lost_bytes,
        "streams": traffic.opened,
        "broken_streams": traffic.failed,
        "broken_tunnels": sum(len(list(log.find("tunnel_up"))) - 1 for log in pair.logs),
        "log_differences": sum(one != other for one, other in zip(near, far, strict=False))
        + abs(len(near) - len(far)),
        "mode_changes": len(near) - 1,
    }


def _facts(pair: LivePair, moments: _Moments, load: MixedLoad) -> dict[str, str]:
    sign = first_bad_sign(pair.logs, moments.injected_s)
    facts = {} if sign is None else {"sign": f"{sign.name} {sign.fields.get('reason')}"}
    for change in pair.near.find("mode_changed", since_s=moments.injected_s):
        facts.setdefault(f"to {change.fields['mode']}", str(change.fields["reason"]))
    if load.traffic.faults:
        facts["first fault"] = load.traffic.faults[0]
    return facts


def _line(seen: Observation) -> str:
    values = seen.values
    return (
        f"round {seen.round + 1}  {seen.case:<30}"
        f" fall {values['sign_to_classical_s']:.2f} s"
        f" ({values['inject_to_classical_s']:.2f} s)"
        f"  climb {values['heal_to_hybrid_s']:.2f} s"
        f"  gaps {values['fall_gap_ratio']:.1f} {values['climb_gap_ratio']:.1f}"
        f" (quiet {values['quiet_gap_ratio']:.1f})"
        f"  lost {values['lost_bytes']:.0f}  broken {values['broken_streams']:.0f}"
        f"  {seen.facts.get('sign')}"
    )


_COLUMNS = (
    ("sign_to_classical_s", "sign to classical, s", ".2f"),
    ("inject_to_classical_s", "injected to classical, s", ".2f"),
    ("heal_to_hybrid_s", "healed to hybrid, s", ".2f"),
    ("fall_gap_ratio", "fall: gap ÷ p99", ".1f"),
    ("climb_gap_ratio", "climb: gap ÷ p99", ".1f"),
    ("quiet_gap_ratio", "quiet: gap ÷ p99", ".1f"),
    ("p99_gap_ms", "p99 gap, ms", ".1f"),
    ("cpu_busy", "CPU busy", ".2f"),
)


def switchover_markdown(study: Study) -> str:
    """The record as a page: median (min to max) over the repetitions, goals marked."""
    goals = {(goal.case, goal.value): goal for goal in study.goals}
    head = ["fault", "goal, s", *(title for _, title, _ in _COLUMNS), "bytes lost", "broken"]
    rows = []
    for case in study.cases:
        goal = goals.get((case, "sign_to_classical_s"))
        broken = [study.spread(case, name) for name in ("broken_streams", "broken_tunnels")]
        lost = study.spread(case, "lost_bytes")
        rows.append(
            [
                case,
                "" if goal is None else f"< {goal.limit:g}",
                *(study.cell(case, name, form) for name, _, form in _COLUMNS),
                "" if lost is None else f"{lost.high:.0f}",
                ", ".join("" if each is None else f"{each.high:.0f}" for each in broken),
            ]
        )
    notes = [
        f"goals: healed to hybrid < {CLIMB_GOAL_S:g} s, gap ≤ {GAP_GOAL:g} p99, nothing lost or"
        " broken (streams, tunnels); each must hold in every repetition",
        *(f"{case}: settings {_settings(study, case)}" for case in study.cases),
    ]
    return study.page(head, rows, notes)


def _settings(study: Study, case: str) -> str:
    particulars = study.cases[case]
    changed = {name: particulars[name] for name in ("link", "peer") if particulars[name]}
    return str(changed) if changed else "default"


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--fault",
        action="append",
        dest="faults",
        metavar="NAME",
        help="only faults whose name begins so; may be given again: "
        + "; ".join(fault.name.replace("%", "%%") for fault in FAULTS),
    )


def _run(options: argparse.Namespace) -> tuple[Study, str]:
    faults = chosen_faults(options.faults)
    if options.quick:
        parameters = SwitchoverParameters(options.rounds, quiet_s=2.0, holds_s=(1.5,))
        faults = faults if options.faults else faults[:1]
    else:
        parameters = SwitchoverParameters(options.rounds)
    study = run_switchover(faults, parameters)
    return study, switchover_markdown(study)


SWITCHOVER = Benchmark(
    "switchover",
    "falling back and climbing back, for every fault of the quantum side",
    SwitchoverParameters().rounds,
    _run,
    _options,
    minutes=20,
)

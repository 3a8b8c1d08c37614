"""`qproxy kme check`: what a pair of KMEs makes of ETSI GS QKD 014."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO, Final

import trio

from qproxy.cli.output import ExitCode, print_error
from qproxy.config.reader import load_gateway_config
from qproxy.errors import ConfigError
from qproxy.kme_check.ends import End, choose_ends
from qproxy.kme_check.hand_over import (
    MAX_FILE_BYTES,
    HandOver,
    HandOverError,
    decode_hand_over,
    encode_hand_over,
)
from qproxy.kme_check.plan import Plan
from qproxy.kme_check.probe import Seen, gather
from qproxy.kme_check.report import (
    Report,
    heading_lines,
    plan_line,
    report_document,
    report_lines,
    verdict_line,
)
from qproxy.log import escape

_MAX_LINE_CHARS: Final = 500
#: One end, or both.
_MAX_CONFIGS: Final = 2


def kme_check_command(options: argparse.Namespace) -> ExitCode:
    """Check; 1 where a gateway could not live with these KMEs; --strict: at any deviation."""
    if len(options.configs) > _MAX_CONFIGS:
        print_error("expected one CONFIG, or two", "one for each end of the link")
        return ExitCode.USAGE
    configs = [load_gateway_config(path) for path in options.configs]
    ends = choose_ends(configs, options.sources)
    if len(ends) > 1 and (options.hand_over or options.take_over):
        print_error(
            "both ends are in reach", "--hand-over and --take-over are for one end at a time"
        )
        return ExitCode.USAGE
    taken = None if options.take_over is None else _read_hand_over(options.take_over, ends[0])
    say = _to_stderr if options.json else _to_stdout
    for line in heading_lines(ends, taken=taken is not None):
        say(line)
    with _new_file(options.hand_over) as file:
        report, seen = trio.run(partial(_check, ends, options.keys, say, taken))
        if file is not None and seen.hand_over is not None:
            file.write(encode_hand_over(seen.hand_over))
    if options.json:
        print(json.dumps(report_document(report), indent=2))
    else:
        for line in report_lines(report):
            say(line)
        say(verdict_line(report))
    if options.hand_over is not None:
        say(f"at the other site: qproxy kme check CONFIG --take-over {options.hand_over.name}")
    bad = report.deviations if options.strict else report.unusable
    return ExitCode.FAILED if bad else ExitCode.DONE


async def _check(
    ends: list[End], max_keys: int, say: partial[None], taken: HandOver | None
) -> tuple[Report, Seen]:
    plans: list[Plan] = []

    def announce(plan: Plan) -> None:
        plans.append(plan)
        say(plan_line(plan))
        say("")

    seen = await gather(ends, max_keys, announce, taken=taken)
    return Report.of(plans[0], seen), seen


def _read_hand_over(path: Path, end: End) -> HandOver:
    try:
        with path.open("rb") as file:
            found = decode_hand_over(file.read(MAX_FILE_BYTES + 1))
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", file=path) from None
    except HandOverError as error:
        raise ConfigError(str(error), file=path) from None
    if (found.master_sae_id, found.slave_sae_id) != (end.peer_sae_id, end.local_sae_id):
        raise ConfigError(
            f"its keys are of SAE {found.master_sae_id} for {found.slave_sae_id}; "
            f"expected keys of {end.peer_sae_id} for {end.local_sae_id}",
            file=path,
            hint="run --hand-over at the other site, --take-over here",
        )
    return found


@contextlib.contextmanager
def _new_file(path: Path | None) -> Iterator[BinaryIO | None]:
    """A file that was not there before, for this user only; gone again where the run fails."""
    if path is None:
        yield None
        return
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(f"cannot be made: {error.strerror}", file=path) from None
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _print(line: str, *, to_stderr: bool) -> None:
    text = escape(line, _MAX_LINE_CHARS, backslashes=False)
    # Said as it happens: the first lines come before the first key is taken.
    print(text, file=sys.stderr if to_stderr else sys.stdout, flush=True)


_to_stdout = partial(_print, to_stderr=False)
_to_stderr = partial(_print, to_stderr=True)

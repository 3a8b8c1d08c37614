"""`qproxy kme check`: what a pair of KMEs makes of ETSI GS QKD 014."""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from typing import Final

import trio

from qproxy.cli.output import ExitCode, print_error
from qproxy.config.reader import load_gateway_config
from qproxy.kme_check.ends import End, choose_ends
from qproxy.kme_check.plan import Plan
from qproxy.kme_check.probe import gather
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
    say = _to_stderr if options.json else _to_stdout
    for line in heading_lines(ends):
        say(line)
    report = trio.run(partial(_check, ends, options.keys, say))
    if options.json:
        print(json.dumps(report_document(report), indent=2))
    else:
        for line in report_lines(report):
            say(line)
        say(verdict_line(report))
    bad = report.deviations if options.strict else report.unusable
    return ExitCode.FAILED if bad else ExitCode.DONE


async def _check(ends: list[End], max_keys: int, say: partial[None]) -> Report:
    plans: list[Plan] = []

    def announce(plan: Plan) -> None:
        plans.append(plan)
        say(plan_line(plan))
        say("")

    evidence = await gather(ends, max_keys, announce)
    return Report.of(plans[0], evidence)


def _print(line: str, *, to_stderr: bool) -> None:
    text = escape(line, _MAX_LINE_CHARS, backslashes=False)
    # Said as it happens: the first lines come before the first key is taken.
    print(text, file=sys.stderr if to_stderr else sys.stdout, flush=True)


_to_stdout = partial(_print, to_stderr=False)
_to_stderr = partial(_print, to_stderr=True)

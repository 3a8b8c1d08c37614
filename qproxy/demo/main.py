"""`qproxy demo`: runs the story, prints table or document, and says PASS or FAIL."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import TextIO

import trio

from qproxy.cli.output import ExitCode, print_error
from qproxy.demo.narrator import Narrator, Tone, paint, wants_colour
from qproxy.demo.record import Record
from qproxy.demo.report import document, table
from qproxy.demo.settings import (
    DEFAULT_CONNECTIONS,
    DEFAULT_MEGABYTES,
    DemoError,
    DemoOptions,
)
from qproxy.demo.story import Story, new_record
from qproxy.demo.verdict import find_problems
from qproxy.demo.workdir import open_workdir
from qproxy.log import escape


def run_demo(options: argparse.Namespace) -> int:
    """Run the demonstration.

    Args:
        options: `json`, `megabytes`, `connections` and `keep_dir`, as the command line parsed them;
            None for a default.

    Returns:
        0 if everything was as it should be, else 1.
    """
    chosen = DemoOptions(
        megabytes=options.megabytes or DEFAULT_MEGABYTES,
        connections=options.connections or DEFAULT_CONNECTIONS,
        keep_dir=options.keep_dir,
        json=options.json,
    )
    progress = sys.stderr if chosen.json else sys.stdout
    record = new_record()
    began = time.monotonic()
    narrator = Narrator(progress, lambda: time.monotonic() - began, colour=wants_colour(progress))
    failure: DemoError | None = None
    try:
        with open_workdir(chosen.keep_dir) as directory:

            async def play() -> None:
                await Story(chosen, directory, record, narrator, trio.current_time()).run()

            trio.run(play)
    except* DemoError as group:
        failure = _first(group)
        record.aborted = str(failure)
    record.duration_s = time.monotonic() - began
    problems = find_problems(record, chosen)
    if chosen.json:
        print(json.dumps(document(record, problems), indent=2, allow_nan=False))
    elif failure is None:
        _print_table(record, problems, progress)
    _print_problems(problems, failure, chosen.keep_dir)
    return ExitCode.FAILED if problems else ExitCode.DONE


def _first(group: BaseExceptionGroup[DemoError]) -> DemoError:
    """The first of the errors that ended the run; the others followed from it."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error if isinstance(error, DemoError) else DemoError(type(error).__name__)


def _print_table(record: Record, problems: list[str], stream: TextIO) -> None:
    print(file=stream)
    *rows, last = table(record, problems)
    for row in rows:
        print(escape(row, backslashes=False), file=stream)
    tone = Tone.BAD if problems else Tone.GOOD
    print(paint(last, tone, colour=wants_colour(stream)), file=stream, flush=True)


def _print_problems(problems: list[str], failure: DemoError | None, keep_dir: Path | None) -> None:
    if keep_dir is None:
        hint = "run again with --keep-dir DIR: it leaves the logs of all children in DIR"
    else:
        hint = f"the logs of all children are in {keep_dir}"
    if failure is not None:
        for line in failure.log_lines:
            print(escape(line, backslashes=False), file=sys.stderr)
        hint = failure.hint or hint
    for number, problem in enumerate(problems, start=1):
        print_error(problem, hint if number == len(problems) else None)

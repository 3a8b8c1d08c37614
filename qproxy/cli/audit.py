"""`qproxy audit verify` and `qproxy audit compare`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from qproxy.audit.compare import CompareError, CompareReport, Story, Window, compare
from qproxy.audit.storage import log_files
from qproxy.audit.tail import read_lines
from qproxy.audit.verify import VerifyReport, verify
from qproxy.cli.output import ExitCode, print_error, print_warning
from qproxy.config.scalars import load_psk
from qproxy.log import escape
from qproxy.supervisor.share import audit_files

if TYPE_CHECKING:
    from qproxy.audit.verify import NamedLines


def verify_command(options: argparse.Namespace) -> ExitCode:
    """Verify a gateway's logs, one or one of each worker; 0 where nothing is wrong, else 1."""
    seek, expected = options.contains, options.expect_head
    key = _key(options.hmac_key_file)
    heads: list[bytes] = []
    lines: list[str] = []
    sought_found = False
    for path in audit_files(options.file):
        report = verify(_files(path), key=key, seek=seek)
        _print_remarks(report.remarks, report.remarks_dropped)
        if report.broken is not None:
            _print_broken(report)
            return ExitCode.FAILED
        if report.first_sequence != 1 and not options.partial:
            print_error(
                f"{path}: the log begins with record {report.first_sequence}: "
                "older files of the chain are missing",
                "put them back beside it, or give --partial to check what is here",
            )
            return ExitCode.FAILED
        heads.append(report.head.hash)
        sought_found = sought_found or report.sought_found
        lines += _report_lines(report)
    if expected is not None and expected not in heads:
        found = " and ".join(head.hex() for head in heads)
        print_error(
            f"{options.file}: the head is {found}, not the one expected",
            "records at the end are missing, or were added since; --contains tells which",
        )
        return ExitCode.FAILED
    if seek is not None and not sought_found:
        print_error(
            f"{options.file}: no record has the hash sought",
            "the log was cut off before it, or rewritten from some point on",
        )
        return ExitCode.FAILED
    for line in lines:
        print(escape(line, 2000, backslashes=False))
    return ExitCode.DONE


def compare_command(options: argparse.Namespace) -> ExitCode:
    """Compare two gateways' logs; 0 where they agree, else 1."""
    stories = []
    for path, key_file in (
        (options.a, options.hmac_key_file_a),
        (options.b, options.hmac_key_file_b),
    ):
        story = _story(path, _key(key_file))
        if story is None:
            return ExitCode.FAILED
        stories.append(story)
    result = compare(stories[0], stories[1], Window(options.since or "", options.until or ""))
    return _print_comparison(result, stories)


def _story(path: Path, key: bytes | None) -> Story | None:
    """What one gateway's logs say; None where they cannot be used, and it was said why."""
    whole: Story | None = None
    for file in audit_files(path):
        story = Story()
        try:
            report = verify(_files(file), key=key, on_record=story.add)
            if whole is None:
                whole = story
            elif report.broken is None:
                whole.join(story)
        except CompareError as error:
            print_error(f"{file}: {error}")
            return None
        if report.broken is not None:
            _print_broken(report)
            return None
    return whole


def _print_comparison(result: CompareReport, stories: list[Story]) -> ExitCode:
    for text in result.remarks:
        print(escape(f"note: {text}", 2000, backslashes=False))
    for text in result.differences:
        print(escape(f"differs: {text}", 2000, backslashes=False))
    if result.dropped:
        print(f"... and {result.dropped} more")
    names = " and ".join(escape(story.node) for story in stories)
    counts = f"{result.tunnels} tunnels, {result.epochs} epochs in both logs"
    if not result.agree:
        print(f"{names} differ: {len(result.differences)} differences; {counts}")
        return ExitCode.FAILED
    if not result.tunnels:
        print_warning("there is no tunnel between the two in either log: nothing was compared")
    print(f"{names} agree: {counts}")
    return ExitCode.DONE


def _report_lines(report: VerifyReport) -> Iterator[str]:
    header = report.header
    if header is not None:
        yield f"ok: log of {header.node}, chain {header.chain_id} ({header.algorithm})"
    first, last = report.first_sequence, report.head.sequence
    yield f"  records {first} to {last} in {report.files} files"
    yield f"  from {report.first_time} to {report.last_time}"
    yield f"  head {report.head.hash.hex()}"


def _print_broken(report: VerifyReport) -> None:
    broken = report.broken
    if broken is None:
        return
    print_error(str(broken), f"{report.records} records before it are in order")


def _print_remarks(remarks: list[str], dropped: int) -> None:
    for text in remarks:
        print_warning(text)
    if dropped:
        print_warning(f"{dropped} more remarks are not shown")


def _files(path: Path) -> Iterator[NamedLines]:
    for file in log_files(path):
        yield str(file), read_lines(file)


def _key(path: Path | None) -> bytes | None:
    return None if path is None else bytes(load_psk(path))

"""docs/kme.md says what the command does."""

import re
from pathlib import Path

from qproxy.cli.kme_options import DEFAULT_MAX_KEYS
from qproxy.kme_check.checks import CHECKS, MIRRORED
from qproxy.kme_check.probe import gather
from qproxy.kme_check.report import Report, plan_line, report_lines, verdict_line
from qproxy.kme_check.verdict import Effect
from tests.kme_check.flawed import flawed_pair

PAGE = (Path(__file__).parents[2] / "docs" / "kme.md").read_text(encoding="utf-8")


def test_the_table_is_the_table_of_checks():
    section = PAGE.partition("## What is checked")[2]
    rows = re.findall(r"^\| `([a-z0-9-]+)` \| (.+) \| (.+) \|$", section, re.MULTILINE)
    assert rows == [(c.name, c.title, c.clause or "left open") for c in (*CHECKS, MIRRORED)]


def test_every_effect_is_explained():
    for effect in Effect:
        assert re.search(rf"^\| `{effect}[ `]", PAGE, re.MULTILINE)
    assert f"({DEFAULT_MAX_KEYS})" in PAGE


async def test_the_example_is_what_is_printed(tmp_path):
    flaws = ("any-number", "not-found-404", "again", "may-be-cached")
    async with flawed_pair(tmp_path, *flaws) as ends:
        plans = []
        evidence = await gather(ends, 320, plans.append)
        report = Report.of(plans[0], evidence)
    printed = {plan_line(report.plan), verdict_line(report), *report_lines(report)}
    (example,) = re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL)
    lines = [line for line in example.splitlines()[3:] if line.strip() not in {"", "…"}]
    assert [line for line in lines if line not in printed] == []
    assert len(lines) > 20

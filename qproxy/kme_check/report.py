"""The outcome of a check: as lines for people, as one JSON object for scripts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from qproxy.kme_check.checks import judge
from qproxy.kme_check.ends import End
from qproxy.kme_check.plan import Plan
from qproxy.kme_check.probe import Seen
from qproxy.kme_check.verdict import Finding, Verdict

#: Version of the JSON object's form. Within it members and words may be added.
FORMAT: Final = 1
STANDARD: Final = "ETSI GS QKD 014 v1.1.1"
_WORDS: Final = {
    Verdict.CONFORMS: "ok",
    Verdict.DEVIATES: "DEVIATES",
    Verdict.NOTE: "note",
    Verdict.SKIPPED: "skipped",
}
_INDENT: Final = " " * 12


@dataclass(frozen=True, slots=True)
class Report:
    """One run.

    Attributes:
        ends: one, or two that face each other.
        plan: what was to be asked for.
        findings: everything that was found.
        keys_used: keys that the KMEs gave out.
        keys_left: those of them that nobody fetched at the other end.
    """

    ends: tuple[End, ...]
    plan: Plan
    findings: tuple[Finding, ...]
    keys_used: int
    keys_left: int

    @classmethod
    def of(cls, plan: Plan, seen_all: Seen) -> Report:
        """Judge what was seen."""
        evidence = seen_all.evidence
        drawn = {key for seen in evidence for key in seen.drawn_ids}
        fetched = {key for seen in evidence for key in seen.fetched_ids}
        return cls(
            ends=tuple(seen.master for seen in evidence),
            plan=plan,
            findings=tuple(judge(evidence, seen_all.taken)),
            keys_used=sum(seen.keys_used for seen in evidence),
            keys_left=len(drawn - fetched),
        )

    @property
    def deviations(self) -> list[Finding]:
        """What is not as the standard has it."""
        return [f for f in self.findings if f.outcome.verdict is Verdict.DEVIATES]

    @property
    def unusable(self) -> list[Finding]:
        """What a gateway refuses, or does not survive, or cannot see."""
        return [finding for finding in self.deviations if not finding.outcome.usable]

    def count(self, verdict: Verdict) -> int:
        """How many findings there are of a verdict."""
        return Counter(finding.outcome.verdict for finding in self.findings)[verdict]


def heading_lines(ends: Sequence[End], *, taken: bool = False) -> Iterator[str]:
    """Who is asked, and what cannot be tried for want of the other end.

    Args:
        ends: one, or two.
        taken: the other end's keys came in a file.
    """
    yield f"{STANDARD}, whose clauses stand in brackets, at"
    for end in ends:
        yield f"  {end}: {end.kme.url}"
    if len(ends) == 1 and not taken:
        yield (
            "One end only: what needs the other is skipped. Name the configuration of"
            f" {ends[0].peer_sae_id} as well, or see --hand-over."
        )
    elif taken:
        yield f"Keys by ID are those that {ends[0].peer_sae_id} handed over."


def plan_line(plan: Plan) -> str:
    """How many keys it is going to take, for before any is taken."""
    gives = f"Takes {plan.gives} keys"
    if plan.worst > plan.gives:
        gives += f"; up to {plan.worst} where a KME gives what it should refuse"
    left_out = "" if not plan.left_out else f"; leaves out {', '.join(sorted(plan.left_out))}"
    return f"{gives} (limit {plan.max_keys}, --keys){left_out}."


def report_lines(report: Report) -> Iterator[str]:
    """The findings and their sum."""
    for group in _by_check(report.findings):
        yield from _group_lines(group, len(report.ends))
    yield ""
    yield _sum_line(report)


def _by_check(findings: Sequence[Finding]) -> Iterator[list[Finding]]:
    group: list[Finding] = []
    for finding in findings:
        if group and finding.check is not group[0].check:
            yield group
            group = []
        group.append(finding)
    if group:
        yield group


def _group_lines(group: Sequence[Finding], ends: int) -> Iterator[str]:
    """One line where every KME does the same, else one for each."""
    if len({finding.outcome for finding in group}) == 1:
        yield from _finding_lines(group[0], "")
        return
    for finding in group:
        yield from _finding_lines(finding, f"{finding.kme}: " if ends > 1 else "")


def _finding_lines(finding: Finding, who: str) -> Iterator[str]:
    check, outcome = finding.check, finding.outcome
    clause = f" [{check.clause}]" if check.clause else ""
    line = f"  {_WORDS[outcome.verdict]:9} {who}{check.title}{clause}"
    if outcome.verdict is not Verdict.DEVIATES:
        yield f"{line}: {outcome.text}" if outcome.text else line
    else:
        yield line
        yield f"{_INDENT}{outcome.text}"
    if outcome.handling is not None:
        handling = outcome.handling
        reason = "" if handling.reason is None else f" ({handling.reason})"
        yield f"{_INDENT}qproxy: {handling.effect}{reason}: {handling.text}"


def _sum_line(report: Report) -> str:
    counts = ", ".join(
        f"{report.count(verdict)} {word}"
        for verdict, word in (
            (Verdict.CONFORMS, "conform"),
            (Verdict.DEVIATES, "deviate"),
            (Verdict.NOTE, "notes"),
            (Verdict.SKIPPED, "skipped"),
        )
    )
    left = f", {report.keys_left} of them fetched by nobody" if report.keys_left else ""
    return f"{counts}; {report.keys_used} keys used{left}"


def verdict_line(report: Report) -> str:
    """What it comes to."""
    if report.unusable:
        names = ", ".join(dict.fromkeys(finding.check.name for finding in report.unusable))
        return f"to be put right before use: {names}"
    if report.deviations:
        return "usable: qproxy tolerates every deviation"
    return "conforms in everything that was tried"


def report_document(report: Report) -> dict[str, Any]:
    """The report as one JSON object."""
    return {
        "format": FORMAT,
        "standard": STANDARD,
        "ends": [
            {
                "name": end.name,
                "url": end.kme.url,
                "local_sae_id": end.local_sae_id,
                "peer_sae_id": end.peer_sae_id,
            }
            for end in report.ends
        ],
        "keys": {
            "planned": report.plan.gives,
            "at_worst": report.plan.worst,
            "limit": report.plan.max_keys,
            "used": report.keys_used,
            "left": report.keys_left,
        },
        "usable": not report.unusable,
        "conforms": not report.deviations,
        "counts": {str(verdict): report.count(verdict) for verdict in Verdict},
        "findings": [_finding_document(finding) for finding in report.findings],
    }


def _finding_document(finding: Finding) -> dict[str, Any]:
    handling = finding.outcome.handling
    return {
        "check": finding.check.name,
        "kme": finding.kme,
        "title": finding.check.title,
        "clause": finding.check.clause,
        "verdict": finding.outcome.verdict,
        "text": finding.outcome.text,
        "qproxy": None
        if handling is None
        else {"effect": handling.effect, "reason": handling.reason, "text": handling.text},
    }

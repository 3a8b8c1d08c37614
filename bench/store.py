"""Records read back from their JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.host import Host
from bench.pairs import Kind
from bench.record import FORMAT, Figure, Record, Row, Sample
from bench.stats import BenchError
from bench.study import Goal, Observation, Study

_FIRST_FIGURES = (
    Figure("mb_per_s", "throughput", "MB/s"),
    Figure("cpu_s_per_gb", "CPU time", "s/GB", less_is_better=True),
)


def load_record(path: Path) -> Record | Study:
    """Read what :meth:`Record.write` or :meth:`Study.write` left behind.

    Raises:
        BenchError: it is no record, or of another format; with the file's name.
    """
    try:
        document = json.loads(path.read_text())
        return decode_record(document)
    except (OSError, ValueError) as error:
        raise BenchError(f"{path}: not a benchmark's record: {error}") from None
    except (KeyError, TypeError) as error:
        raise BenchError(f"{path}: not a whole record: {error!r}") from None
    except BenchError as error:
        raise BenchError(f"{path}: {error}") from None


def decode_record(document: Mapping[str, Any]) -> Record | Study:
    """A record from its JSON; the summary in it is not read, it follows from the samples.

    Raises:
        BenchError: it has another format.
        KeyError, TypeError, ValueError: something is missing or of another kind.
    """
    if document["format"] != FORMAT:
        raise BenchError(f"expected format {FORMAT}, got {document['format']}")
    if "samples" not in document:
        return _study(document)
    return Record(
        benchmark=document["benchmark"],
        started=document["started"],
        host=Host(**document["host"]),
        parameters=document["parameters"],
        value=document["value"],
        cost=document["cost"],
        rows=[Row(**{**row, "kind": Kind(row["kind"])}) for row in document["rows"]],
        samples=[Sample(**sample) for sample in document["samples"]],
        finished=document["finished"],
        figures=_figures(document),
        # The first records had no notes.
        notes=list(document.get("notes", ())),
    )


def _figures(document: Mapping[str, Any]) -> tuple[Figure, ...]:
    """A record's figures; the first records had no list of them, but these two."""
    if document.get("figures"):
        return tuple(Figure(**figure) for figure in document["figures"])
    named = (document["value"], document["cost"])
    return tuple(figure for figure in _FIRST_FIGURES if figure.name in named)


def _study(document: Mapping[str, Any]) -> Study:
    return Study(
        benchmark=document["benchmark"],
        started=document["started"],
        host=Host(**document["host"]),
        parameters=document["parameters"],
        cases=dict(document["cases"]),
        goals=[Goal(**goal) for goal in document["goals"]],
        observations=[Observation(**each) for each in document["observations"]],
        failed=list(document["failed"]),
        finished=document["finished"],
    )

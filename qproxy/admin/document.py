"""The ``/status`` document: a snapshot and what follows from it, as JSON.

``status.schema.json`` beside this module describes it. Within one ``schema_version`` fields may be
added, never renamed, removed or given another meaning.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import importlib.resources
import json
import math
from collections.abc import Mapping
from typing import Any, Final

from qproxy.admin.assess import Assessment
from qproxy.admin.status import GatewayStatus

#: Version of the document's form.
SCHEMA_VERSION: Final = 1


def status_document(
    status: GatewayStatus, assessment: Assessment, time: dt.datetime
) -> dict[str, Any]:
    """The whole document.

    Args:
        status: the snapshot.
        assessment: what follows from it.
        time: wall-clock time of the snapshot, with its zone.
    """
    return {
        "schema_version": SCHEMA_VERSION,
        "time": time.astimezone(dt.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        **readiness_document(assessment),
        "warnings": plain(assessment.warnings),
        **plain(status),
    }


def readiness_document(assessment: Assessment) -> dict[str, Any]:
    """What ``/readyz`` says."""
    return {"ready": assessment.ready, "not_ready": plain(assessment.not_ready)}


def encode_document(document: Mapping[str, Any]) -> bytes:
    """JSON in UTF-8, indented for people, with a newline at its end."""
    return json.dumps(document, indent=2, allow_nan=False).encode() + b"\n"


def load_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of the document."""
    text = importlib.resources.files("qproxy.admin").joinpath("status.schema.json").read_text()
    schema: dict[str, Any] = json.loads(text)
    return schema


def plain(value: Any) -> Any:
    """Dataclasses as objects, tuples as arrays, enums as their words."""
    if dataclasses.is_dataclass(value):
        return {
            entry.name: plain(getattr(value, entry.name)) for entry in dataclasses.fields(value)
        }
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    if isinstance(value, str):
        return str(value)
    if isinstance(value, float):
        # Ages to the microsecond are noise; JSON has no infinity.
        return round(value, 6) if math.isfinite(value) else None
    return value

"""The /status document and its published schema are the same."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json

import jsonschema
import pytest

from qproxy.admin.assess import assess
from qproxy.admin.document import encode_document, load_schema, status_document
from tests.admin import made

TIME = dt.datetime(2026, 1, 31, 12, 0, 0, 123456, dt.timezone(dt.timedelta(hours=1)))


def document(status):
    return json.loads(encode_document(status_document(status, assess(status), TIME)))


def validator(schema):
    kind = jsonschema.Draft202012Validator
    kind.check_schema(schema)
    return kind(schema)


def closed(schema):
    """The same schema, with no field it does not name."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: closed(value) for key, value in schema.items()}
    if "properties" in found and found.get("type") == "object":
        found["additionalProperties"] = False
    return found


@pytest.mark.parametrize("name", made.ALL)
def test_every_snapshot_fits_the_schema_which_names_every_field(name):
    validator(closed(load_schema())).validate(document(made.ALL[name]))


def test_the_schema_demands_and_describes_every_field():
    schema = load_schema()
    objects = [schema, *(item for item in schema["$defs"].values() if "properties" in item)]
    assert len(objects) == 16
    for item in objects:
        assert set(item["required"]) == set(item["properties"])
        assert item["description"]
    defined = {
        "peer_status": made.PEER,
        "tunnel_status": made.TUNNEL,
        "link_status": made.LINK,
        "key_source_status": made.SOURCE,
        "keys_used": made.PEER.keys_used[0],
        "stock_status": made.STOCK,
        "listener_status": made.LISTENER,
        "service_status": made.SERVICE,
        "audit_status": made.AUDIT,
        "worker_status": made.WORKER,
    }
    for key, value in defined.items():
        properties = schema["$defs"][key]["properties"]
        assert set(properties) == {field.name for field in dataclasses.fields(value)}
        assert all("description" in item for item in properties.values())


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("schema_version",), 2),
        (("ready",), "yes"),
        (("peers", 0, "mode"), "quantum"),
        (("peers", 0, "bytes_sent"), -1),
        (("peers", 0, "link", "reason"), "because I said so"),
        (("peers", 0, "epochs", "sideways"), 1),
    ],
)
def test_the_schema_refuses_what_is_none(path, value):
    spoilt = document(made.GATEWAY)
    inner = spoilt
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = value
    assert not validator(load_schema()).is_valid(spoilt)


def test_the_document_says_when_in_utc_and_whether_it_is_ready():
    found = document(made.NO_TUNNEL)
    assert found["time"] == "2026-01-31T11:00:00.123Z"
    assert found["schema_version"] == 1
    assert found["ready"] is False
    assert found["not_ready"][0]["reason"] == "no_tunnel"
    assert found["peers"][0]["not_connected"]["by_reason"] == {"connect_refused": 5}


def test_infinity_becomes_null():
    endless = dataclasses.replace(made.STOCK, exhaustion_s=float("inf"))
    assert document(made.with_peer(stock=endless))["peers"][0]["stock"]["exhaustion_s"] is None

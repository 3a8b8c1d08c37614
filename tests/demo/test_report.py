"""The table and the document."""

import json
import re

from qproxy.demo.report import FIELDS, document, part_summary, table
from qproxy.demo.story import new_record
from tests.demo.helpers import good_part, good_record


def leaves(value, path=""):
    """Paths of a document as FIELDS writes them."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for inner in value:
            yield from leaves(inner, f"{path}[]")
    else:
        yield path


def test_every_field_of_the_document_is_described_and_every_described_field_is_there():
    assert set(leaves(document(good_record(), ["a problem"]))) == set(FIELDS)


def test_the_document_of_a_run_that_never_began_is_json_too():
    empty = document(new_record(), ["it never began"])
    assert json.loads(json.dumps(empty, allow_nan=False)) == empty
    assert (empty["fall_back_s"], empty["up_mb_per_s"], empty["tls_group"]) == (None, None, None)


def test_speeds_are_taken_over_all_parts():
    numbers = document(good_record(), [])
    assert (numbers["up_mb"], numbers["up_mb_per_s"]) == (8.0, 5.333)
    assert (numbers["down_mb"], numbers["down_mb_per_s"]) == (8.0, 10.667)
    assert (numbers["short_connections"], numbers["short_connections_per_s"]) == (100, 66.667)


def test_the_table_says_what_happened():
    text = "\n".join(table(good_record(), []))
    for row in (
        "modes                 hybrid -> classical-only -> hybrid",
        "epochs                6 hybrid, 4 classical-only",
        "SIMULATED keys used   6",
        "fall back             1.0 s",
        "climb back            3.0 s",
        "up                    8 MB (5 MB/s)",
        "short connections     100 (67/s)",
        "long-lived stream     1000 of 1000 frames, longest gap 21 ms",
        "bytes verified        16 000 000",
        "bytes lost            0",
        "connections failed    0 of 109",
        "result                PASS",
    ):
        assert row in text.splitlines()


def test_simulated_keys_are_never_called_qkd():
    for row in table(good_record(), []):
        assert "QKD" not in row
        assert not re.search(r"\bkeys\b", row) or "SIMULATED" in row
    for name in FIELDS:
        assert "qkd" not in name or "simulated" in name


def test_a_table_of_nothing_divides_by_nothing():
    text = "\n".join(table(new_record(), ["it never began"]))
    assert "never" in text
    assert text.endswith("FAIL")


def test_a_part_is_summed_up_in_one_line():
    assert part_summary(good_part("hybrid", "hybrid", 2)) == (
        "4 MB (8 MB/s) up, 4 MB (16 MB/s) down, 50 (100/s) connections, 2 rekeys"
    )

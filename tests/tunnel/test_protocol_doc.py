"""docs/protocol.md against the code: tables that must not drift apart."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from qproxy import keys
from qproxy.crypto import kem, labels, records, schedule
from qproxy.errors import WIRE_CODES, Reason, RemoteProtocolError, public_reason
from qproxy.tunnel import (
    announce,
    constants,
    credit,
    frames,
    messages,
    pace,
    reauth,
    records_out,
    session,
    settings,
    states,
    timers,
    trials,
    turns,
)
from qproxy.tunnel.settings import Role
from tests.tunnel.adversary import inject_frame
from tests.tunnel.helpers import established

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8")
RULE_HEADING = re.compile(r"^### (R\d+)\. ", re.MULTILINE)


def section(title: str) -> str:
    """The text under a heading, up to the next one of its level or above."""
    level, start = next(
        (len(found[1]), found.end())
        for found in re.finditer(r"^(#+) (.*)$", TEXT, re.MULTILINE)
        if found[2] == title
    )
    following = re.compile(rf"^#{{2,{level}}} ", re.MULTILINE).search(TEXT, start)
    return TEXT[start : following.start() if following else len(TEXT)]


def rows(text: str) -> list[list[str]]:
    """The cells of every table row, header and ruler included; code marks taken off."""
    return [
        [cell.strip().strip("`") for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("|")
    ]


def numbered(text: str) -> dict[int, str]:
    """Rows that begin with a number: number to second cell."""
    return {int(row[0]): row[1] for row in rows(text) if row[0].isdigit()}


def number(cell: str) -> int:
    return int(cell.replace(",", ""))


def tables(text: str) -> list[str]:
    """The tables of a section, one text each."""
    return re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)


def test_every_reason_and_no_other_is_listed_with_its_code():
    table = section("Reasons")
    assert numbered(table) == {code: str(reason) for reason, code in WIRE_CODES.items()}
    told = {row[1]: row[3] for row in rows(table) if row[0].isdigit()}
    for reason in WIRE_CODES:
        public = public_reason(reason)
        assert told[reason] == ("" if public is reason else str(public))


def test_modes_policies_and_suites():
    modes, policies = tables(section("Modes, policies"))
    aeads, kems = tables(section("Suites"))
    assert numbered(modes) == {code: str(mode) for mode, code in schedule.MODE_CODES.items()}
    assert numbered(policies) == {code: str(p) for p, code in messages.POLICY_CODES.items()}
    assert numbered(aeads) == {code: str(a) for a, code in messages.AEAD_CODES.items()}
    assert numbered(kems) == {code: str(k) for k, code in messages.KEM_CODES.items()}
    listed = {row[1]: (number(row[2]), number(row[3])) for row in rows(kems) if row[0].isdigit()}
    assert listed == {str(k): (s.encapsulation_key, s.ciphertext) for k, s in kem.SIZES.items()}


def test_every_frame_is_listed_with_its_code_stream_and_solitude():
    listed = {
        int(row[0]): (row[1], row[2] == "stream", row[3] == "yes")
        for row in rows(section("Frames"))
        if row[0].isdigit() and len(row) == 5
    }
    assert listed == {
        int(frame): (frame.name, frame in frames.STREAM_FRAMES, frame in frames.LONE_FRAMES)
        for frame in frames.FrameType
    }
    assert f"header of {frames.FRAME_HEADER_BYTES} bytes" in section("Frames")
    assert f"at most {frames.MAX_PAYLOAD_BYTES:,}" in section("Frames")


@pytest.mark.parametrize("message", messages.MessageType, ids=lambda message: message.name)
def test_every_epoch_message_has_a_byte_table_with_its_type(message):
    direction = "server to client" if message.name in {"ACCEPT", "REJECT"} else "client to server"
    table = section(f"{message.name} (type {int(message)}, {direction})")
    assert rows(table)[2] == ["0", "1", "type", str(int(message))]


@pytest.mark.parametrize(
    ("title", "message"),
    [
        ("OFFER (type 1, client to server)", messages.Offer),
        ("ACCEPT (type 2, server to client)", messages.Accept),
        ("REJECT (type 3, server to client)", messages.Reject),
        ("CONFIRM (type 4, client to server)", messages.Confirm),
        ("ABORT (type 5, client to server)", messages.Abort),
    ],
)
def test_every_field_of_a_message_is_in_its_byte_table(title, message):
    names = {field.name for field in dataclasses.fields(message)} | {"type"}
    if message is messages.Offer:
        names -= {"binding"}
        names |= {field.name for field in dataclasses.fields(messages.Binding)} | {"key_count"}
    assert {row[2] for row in rows(tables(section(title))[0])[2:]} == names


def test_the_entry_of_an_offered_key():
    entry = tables(section("OFFER (type 1, client to server)"))[1]
    names = [field.name for field in dataclasses.fields(messages.OfferedKey)]
    assert [row[1] for row in rows(entry)[2:]] == names


def test_the_frames_that_prepare_an_epoch():
    tls = rows(tables(section("Re-authentication"))[0])[2:]
    id_bytes, chunk = messages.REAUTH_ID_BYTES, reauth.MAX_TLS_CHUNK_BYTES
    assert [row[:3] for row in tls] == [
        ["0", str(id_bytes), "reauth_id"],
        [str(id_bytes), f"1 to {chunk:,}", "tls"],
    ]
    count = f"1 to {announce.MAX_KEYS_PER_ANNOUNCE}"
    announced = rows(tables(section("ANNOUNCE"))[0])[2:]
    assert announced[0] == ["1", "count", count]
    assert announced[1][1] == "keys"
    report = rows(tables(section("REPORT"))[0])[2:]
    size = announce.INSTANCE_ID_BYTES
    assert report[0][:3] == ["0", str(size), "instance_id"]
    assert report[1] == [str(size), "1", "count", count]
    assert f"text, 1 to {keys.MAX_KEY_ID_BYTES} bytes" in report[2][3]


@pytest.mark.parametrize("title", ["Re-authentication", "REQUEST"])
def test_how_long_a_reauthentication_may_take(title):
    assert f"{timers.REAUTH_GRACE_S:g} seconds" in section(title)


def test_who_may_send_the_frames_that_prepare_an_epoch():
    wrong = {
        Role.SERVER: (frames.FrameType.REQUEST, frames.FrameType.REPORT),
        Role.CLIENT: (frames.FrameType.ANNOUNCE,),
    }
    sent = {row[1]: row[4] for row in rows(section("Frames")) if row[0].isdigit() and len(row) == 5}
    for role, kinds in wrong.items():
        for kind in kinds:
            direction = "client to server" if role is Role.CLIENT else "server to client"
            assert direction in sent[kind.name]
            pair = established()
            sender = Role.CLIENT if role is Role.SERVER else Role.SERVER
            with pytest.raises(RemoteProtocolError) as caught:
                inject_frame(pair, sender, kind, 0, b"\x01")
            assert caught.value.reason is Reason.UNEXPECTED_MESSAGE


def test_every_label_and_no_other_is_listed():
    cells = re.findall(r"^\|[^|]*\| `([^`]*)`", section("Labels"), re.MULTILINE)
    used = {value.decode() for name, value in vars(labels).items() if name.isupper()}
    assert set(cells) == used
    assert len(cells) == len(used)


def test_every_protocol_constant_is_listed_with_its_value():
    expected = {
        name: value
        for name, value in vars(constants).items()
        if name.isupper() and isinstance(value, int)
    }
    for module, names in (
        (records, ("MAX_CONTENT_BYTES", "MAX_CIPHERTEXT_BYTES", "MAX_RECORDS_PER_KEY")),
        (keys, ("MIN_QKD_KEY_BYTES", "MAX_QKD_KEY_BYTES", "MAX_KEY_ID_BYTES")),
        (messages, ("MAX_SOURCE_BYTES", "REAUTH_ID_BYTES")),
        (announce, ("MAX_KEYS_PER_ANNOUNCE", "INSTANCE_ID_BYTES")),
        (reauth, ("MAX_TLS_CHUNK_BYTES",)),
        (timers, ("REAUTH_GRACE_S",)),
    ):
        expected |= {name: getattr(module, name) for name in names}
    listed = {row[0]: number(row[1]) for row in rows(section("Protocol constants"))[2:]}
    assert listed == expected


def test_every_local_limit_is_listed_with_its_default():
    expected = {
        field.name: field.default
        for field in dataclasses.fields(settings.TunnelSettings)
        if isinstance(field.default, int | float) and not isinstance(field.default, bool)
    }
    listed = {row[0]: number(row[1]) for row in rows(section("Local settings"))[2:]}
    assert listed == expected
    assert f"After {timers._END_TIMEOUT_S:g} seconds without the peer's END" in TEXT
    kept = records.MAX_RECORDS_PER_KEY - records_out.MAX_DATA_RECORDS_PER_KEY
    assert f"The last {kept:,} records under a key" in section("Failures")


def test_every_number_of_flow_control_is_listed():
    listed = {row[0]: float(row[1].replace(",", "")) for row in rows(section("Flow control"))[2:]}
    code = {
        name: value
        for module in (credit, session, pace, trials, turns, records_out)
        for name, value in vars(module).items()
        if name in listed
    }
    assert listed == code
    for module in (credit, pace, trials, turns):
        own = Path(module.__file__).read_text(encoding="utf-8")
        public = set(re.findall(r"^([A-Z][A-Z_]+) = ", own, re.MULTILINE))
        assert public - set(listed) <= {"ASSUMED_ROUND_TRIP_S", "SMALL_BYTES"}


@pytest.mark.parametrize(
    ("title", "table"),
    [
        ("Client, one exchange", states.CLIENT_EPOCH),
        ("Server, one exchange", states.SERVER_EPOCH),
    ],
)
def test_the_state_tables_are_the_code_s(title, table):
    listed = {tuple(row) for row in rows(section(title))[2:]}
    assert listed == {
        (state.value, event.value, target.value) for (state, event), target in table.items()
    }


def test_every_phase_of_a_tunnel_is_listed():
    listed = [row[0] for row in rows(section("Tunnel"))[2:]]
    assert listed == [phase.value for phase in states.Phase]


def test_the_tls_groups():
    named = set(re.findall(r"`(\w*MLKEM\w*)`", section("TLS phase")))
    assert named == settings.HYBRID_GROUPS


def test_the_rules_are_numbered_1_to_14_and_each_names_its_tests():
    rules = section("What the model taught")
    assert RULE_HEADING.findall(rules) == [f"R{number}" for number in range(1, 15)]
    for count, rule in enumerate(re.split(r"^### ", rules, flags=re.MULTILINE)[1:], 1):
        assert f"`test_r{count:02}_…`" in rule
        assert "* Steps: " in rule
        assert "Enforced: " in rule


def test_every_test_the_document_names_exists():
    named = set(re.findall(r"`(test_\w+)`", TEXT))
    assert named
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py")]
    existing = {name for source in sources for name in re.findall(r"def (test_\w+)", source)}
    assert named <= existing


@pytest.mark.parametrize("step", [f"{side}{count}" for side in "CS" for count in range(7)])
def test_every_step_the_code_cites_is_in_the_document(step):
    assert re.search(rf"^\*\*{step}\. ", TEXT, re.MULTILINE)


def test_every_rule_has_a_test_of_its_name():
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py")]
    shown = {int(found) for source in sources for found in re.findall(r"def test_r(\d\d)_", source)}
    assert shown == set(range(1, 15))


def test_every_place_the_code_names_as_enforcing_a_rule_exists():
    """`Class.method` and bare names of the rules are really in qproxy."""
    rules = section("What the model taught")
    enforced = " ".join(re.findall(r"Enforced: (.*?)\.\n", rules, re.DOTALL))
    names = {name.split(".")[-1] for name in re.findall(r"`([\w.]+)`", enforced)}
    code = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "qproxy").rglob("*.py"))
    assert {name for name in names if not re.search(rf"\b{name}\b", code)} == set()


def test_headings_the_code_refers_to_exist():
    code = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "qproxy").rglob("*.py"))
    cited = set(re.findall(r'docs/protocol\.md, "([^"]+)"', code))
    assert cited
    headings = {match[1] for match in re.finditer(r"^#+ (.*)$", TEXT, re.MULTILINE)}
    assert cited <= headings


def test_links_inside_the_document_lead_somewhere():
    headings = {
        re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-")
        for heading in re.findall(r"^#+ (.*)$", TEXT, re.MULTILINE)
    }
    assert set(re.findall(r"\]\(#([^)]+)\)", TEXT)) <= headings

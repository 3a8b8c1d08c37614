"""What `qproxy status` prints, from documents good and bad."""

from __future__ import annotations

import datetime as dt
import json
from dataclasses import replace

import pytest

from qproxy.admin.assess import assess
from qproxy.admin.document import encode_document, status_document
from qproxy.admin.text import MAX_FINDINGS, StatusFormatError, status_lines
from qproxy.errors import Reason
from qproxy.keys import KeyNature
from qproxy.quantum.health import LinkState
from tests.admin import made


def document(status):
    time = dt.datetime(2026, 1, 31, tzinfo=dt.UTC)
    return json.loads(encode_document(status_document(status, assess(status), time)))


def lines(status):
    return status_lines(document(status))


def test_five_lines_say_what_is_wrong():
    assert lines(made.FALLEN_BACK)[:3] == [
        "gw-a: ready, up 1 h 23 min, qproxy 1.2.3, ML-KEM by liboqs",
        " ! peer gw-b: classical-only for 4 min 10 s: kme_unreachable"
        " (keys of sources in earlier epochs it is chained to)",
        " ! peer gw-b: quantum link down for 4 min 10 s: kme_unreachable (key source kme-a)",
    ]
    assert lines(made.NO_TUNNEL)[:2] == [
        "gw-a: NOT READY, up 1 h 23 min, qproxy 1.2.3, ML-KEM by liboqs",
        "!! peer gw-b: no usable tunnel, dialling failed 2.0 s ago: connect_refused",
    ]
    assert lines(made.DRAINING)[0].startswith("gw-a: DRAINING")


def test_a_peer_takes_one_block():
    assert lines(made.GATEWAY)[1:] == [
        "peer gw-b: hybrid, tunnels up: 1 of 1, dialled at 192.0.2.2:7443",
        "  policy prefer (here prefer, there prefer); last key 12 s ago",
        "  link healthy for 1 h 6 min (link_healthy), key source kme-a; it holds 900 keys;"
        " QBER 1.20%",
        "  keys 30 in stock; 120 drawn, 84 used, 2 orphaned",
        "  epochs 84 hybrid, 1 classical-only, 2 failed; ml-kem-1024, aes-256-gcm",
        "  streams 3 open, 700 opened; sent 9.8 KiB, received 19.5 KiB",
        "  tunnel dialled here, hybrid epoch 84 for 12 s, X25519MLKEM768, round trip 2.1 ms,"
        " rekey every 60 s",
        "listener web (127.0.0.1:8080) to web at gw-b: 3 open, 702 accepted, 0 refused, 0 reset",
        "service db: 1 open, 9 opened, 0 refused, 0 reset",
    ]


def test_keys_of_several_sources_are_told_apart_and_marked():
    pad = replace(
        made.SOURCE,
        name="pad",
        path="south",
        kind="file",
        keys_are=KeyNature.PAD,
        link=replace(made.LINK, source="pad", state=LinkState.DOWN, reason=Reason.KEYS_EXHAUSTED),
    )
    kme = replace(
        made.SOURCE, path="north", keys_are=KeyNature.SIMULATED, says="a random number generator"
    )
    tunnel = made.tunnel(
        sources=("kme-a", "pad"), keys_are=(KeyNature.SIMULATED, KeyNature.PAD), simulated=True
    )
    found = lines(made.with_peer(sources=(kme, pad), tunnels=(tunnel,)))
    block = [line for line in found if not line.startswith((" !", "!!"))]
    assert block[1].startswith("peer gw-b: hybrid with pre-shared-pad and SIMULATED keys, tunnels")
    assert block[4:7] == [
        "  hybrid with keys of at least 1 of 2 sources",
        "  key source kme-a for path north: etsi-qkd-014, keys simulated, by 'a random number"
        " generator' as it says; healthy for 1 h 6 min (link_healthy)",
        "  key source pad for path south: file, keys pre-shared-pad;"
        " down for 1 h 6 min (keys_exhausted)",
    ]
    warned = [line for line in found if line.startswith(" !")]
    assert " ! peer gw-b: keys of kme-a are SIMULATED: they protect nothing" in warned
    assert " ! peer gw-b: keys of pad are a pre-shared pad, not QKD" in warned
    assert " ! peer gw-b: the pad of pad has 900 keys left, for 14 h 58 min at this use" in warned
    assert any("key source pad (south) down" in line for line in warned)


def test_a_stricter_policy_of_a_listener_or_service_is_shown():
    assert lines(made.PAYMENTS_REFUSED)[-2:] == [
        "listener web (127.0.0.1:8080) to web at gw-b: 3 open, 702 accepted,"
        " 1 refused (1 policy_require), 0 reset; policy require, NOT MET",
        "service db: 1 open, 9 opened, 0 refused, 4 reset (4 qkd_too_old); policy require, NOT MET",
    ]


@pytest.mark.parametrize("name", made.ALL)
def test_every_snapshot_can_be_printed(name):
    found = lines(made.ALL[name])
    assert all(line and "None" not in line for line in found)


def test_findings_are_bounded():
    many = made.gateway(
        peers=tuple(replace(made.NO_TUNNEL.peers[0], name=f"gw-{n}") for n in range(50))
    )
    found = lines(many)
    assert sum(line.startswith("!! ") for line in found) == MAX_FINDINGS
    assert " ! and 30 more" in found


@pytest.mark.parametrize(
    "spoil",
    [
        lambda found: found.clear(),
        lambda found: found.update(schema_version=2),
        lambda found: found.pop("peers"),
        lambda found: found.update(peers=7),
        lambda found: found.update(uptime_s="long"),
        lambda found: found.update(uptime_s=float("inf")),
        lambda found: found.update(uptime_s=float("nan")),
        lambda found: found["peers"][0].update(link=[]),
        lambda found: found["peers"][0]["tunnels"][0].update(round_trip_s="x"),
        lambda found: found["peers"][0].update(epochs=["hybrid"]),
    ],
)
def test_what_is_no_status_document_is_said_to_be_none(spoil):
    found = document(made.GATEWAY)
    spoil(found)
    with pytest.raises(StatusFormatError):
        status_lines(found)


def test_the_audit_log_is_one_line_with_its_head():
    assert lines(made.AUDITED)[1] == (
        "audit /var/lib/qproxy/audit.jsonl: 512 records; head 900 0123456789abcdef"
    )
    assert "7 lost, FAILING (unwritable)" in lines(made.AUDIT_GOES_ON)[3]
    older = document(made.AUDITED)
    del older["audit"]
    assert status_lines(older)[1:] == lines(made.GATEWAY)[1:]


def test_the_kme_in_use_is_shown_where_there_are_several():
    assert "  key source kme-a at KME south" in lines(made.ON_THE_SPARE_KME)
    assert not [line for line in lines(made.GATEWAY) if "at KME" in line]

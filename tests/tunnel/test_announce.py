"""Announced keys: what can be named and reported, and what is refused before it is sent."""

from __future__ import annotations

import pytest

from qproxy.errors import LocalProtocolError, Reason
from qproxy.modes import Mode
from qproxy.tunnel.announce import MAX_KEYS_PER_ANNOUNCE, KeyReport
from qproxy.tunnel.events import EpochCommitted, KeysAnnounced
from qproxy.tunnel.messages import OfferedKey
from qproxy.tunnel.settings import Role
from tests.tunnel.helpers import established, qkd_keys

SOURCE = "etsi-qkd-014"
UNUSABLE = {
    "none": (),
    "too many": tuple(OfferedKey(SOURCE, 32, f"k{n}") for n in range(MAX_KEYS_PER_ANNOUNCE + 1)),
    "twice": (OfferedKey(SOURCE, 32, "k"), OfferedKey(SOURCE, 32, "k")),
    "no id": (OfferedKey(SOURCE, 32, ""),),
    "long id": (OfferedKey(SOURCE, 32, "k" * 129),),
    "very long id": (OfferedKey(SOURCE, 32, "k" * 300),),
    "unprintable id": (OfferedKey(SOURCE, 32, "k\n"),),
    "surrogate": (OfferedKey(SOURCE, 32, "\ud800"),),
    "short key": (OfferedKey(SOURCE, 31, "k"),),
    "long key": (OfferedKey(SOURCE, 1025, "k"),),
    "no source": (OfferedKey("", 32, "k"),),
    "long source": (OfferedKey("s" * 33, 32, "k"),),
}


@pytest.mark.parametrize("what", UNUSABLE)
def test_a_kme_cannot_end_a_tunnel_by_the_keys_that_are_announced(what: str) -> None:
    pair = established()
    with pytest.raises(LocalProtocolError) as caught:
        pair.client.announce_keys(UNUSABLE[what])
    assert caught.value.reason is Reason.KEY_INVALID
    pair.pump()
    assert pair.server.established
    assert not pair.of(Role.SERVER, KeysAnnounced)


@pytest.mark.parametrize(
    "report",
    [
        KeyReport(b"instance", ()),
        KeyReport(b"short", (("k", None),)),
        KeyReport(b"instance", tuple((f"k{n}", None) for n in range(65))),
        KeyReport(b"instance", (("k\n", None),)),
        KeyReport(b"instance", (("k" * 129, Reason.KEY_NOT_FOUND),)),
    ],
)
def test_a_report_that_the_client_would_not_take_is_not_sent(report: KeyReport) -> None:
    pair = established()
    with pytest.raises(LocalProtocolError) as caught:
        pair.server.report_keys(report)
    assert caught.value.reason is Reason.KEY_INVALID
    pair.pump()
    assert pair.client.established


def test_the_largest_announcement_and_report_fit_one_frame() -> None:
    pair = established()
    ids = [f"{n:02}" + "k" * 126 for n in range(MAX_KEYS_PER_ANNOUNCE)]
    keys = tuple(OfferedKey("s" * 32, 1024, key_id) for key_id in ids)
    pair.client.announce_keys(keys)
    pair.server.report_keys(KeyReport(b"instance", tuple((key_id, None) for key_id in ids)))
    pair.pump()
    assert pair.last(Role.SERVER, KeysAnnounced).keys == keys


def test_announcing_burns_nothing() -> None:
    pair = established()
    pair.client.announce_keys([OfferedKey(SOURCE, 32, "k2")])
    pair.pump()
    pair.start_epoch(Mode.HYBRID, qkd_keys("k2"))
    pair.pump()
    assert pair.last(Role.SERVER, EpochCommitted).key_ids == ("k2",)


def test_only_the_client_announces() -> None:
    pair = established()
    with pytest.raises(LocalProtocolError):
        pair.server.announce_keys([OfferedKey(SOURCE, 32, "k")])

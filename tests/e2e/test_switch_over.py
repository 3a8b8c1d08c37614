"""Every fault of the quantum side, and its healing, under long-lived and short-lived streams.

Whatever happens to keys, no byte of data is lost, no stream ends, and both gateways tell the same
story. Nothing here depends on how long a switch takes.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.conftest import MakePair
from tests.e2e.pair import QUICK_TO_CLIMB, GatewayPair
from tests.e2e.processes import DEADLINE_S, Fields, poll
from tests.e2e.sockets import Backend, TwoWayTraffic, pattern, proxied, receive_all

#: Epochs so often that keys run out, or are found to differ, within a few seconds.
OFTEN: dict[str, Any] = QUICK_TO_CLIMB | {"rekey": {"interval_s": 0.1, "max_age_s": 2}}
#: Size of what a short stream carries each way, in bytes.
SHORT_BYTES = 2000


class ShortStreams:
    """Connections one after the other, each with something of its own to carry there and back.

    Attributes:
        count: how many went well.
    """

    def __init__(self, pair: GatewayPair, backend: Backend) -> None:
        self.count = 0
        self._address = pair.address("app")
        self._backend = backend
        self._stop = threading.Event()
        self._fault: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Stop. Raises what was wrong with any of them."""
        self._stop.set()
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive(), f"stuck after {self.count} connections"
        if self._fault is not None:
            raise self._fault
        assert self.count > 0

    def _run(self) -> None:
        try:
            while not self._stop.wait(0.01):
                self._one(pattern(b"short stream %d" % self.count, SHORT_BYTES))
                self.count += 1
        except BaseException as error:
            self._fault = error

    def _one(self, data: bytes) -> None:
        with proxied(self._address, self._backend) as (near, far):
            near.sendall(data)
            near.shutdown(socket.SHUT_WR)
            assert receive_all(far) == data
            far.sendall(data[::-1])
            far.shutdown(socket.SHUT_WR)
            assert receive_all(near) == data[::-1]


class Load:
    """A long-lived stream full both ways, and short ones beside it."""

    def __init__(self, pair: GatewayPair, backend: Backend, traffic: TwoWayTraffic) -> None:
        self._traffic = traffic
        self._short = ShortStreams(pair, backend)

    def finish(self) -> None:
        """Stop both, and check every byte."""
        self._short.finish()
        self._traffic.finish()

    def goes_on(self) -> None:
        """Wait until more has arrived both ways, and another short stream went well."""
        before, count = self._traffic.received_bytes, self._short.count

        def moved() -> bool:
            now = self._traffic.received_bytes
            return self._short.count > count and all(
                after > then for after, then in zip(now, before, strict=True)
            )

        poll("data flows on", moved)


@contextlib.contextmanager
def under_load(pair: GatewayPair, backend: Backend) -> Iterator[Load]:
    """Load until the end; then the data, the tunnel and both gateways' story are checked."""
    with proxied(pair.address("app"), backend) as (near, far):
        load = Load(pair, backend, TwoWayTraffic(near, far))
        yield load
        load.finish()
    assert_nothing_broke(pair)
    assert_the_same_story(pair)


def assert_nothing_broke(pair: GatewayPair) -> None:
    for gateway in (pair.a, pair.b):
        assert len(gateway.find("tunnel_up")) == 1
        for event in ("tunnel_closed", "client_refused", "stream_refused"):
            assert gateway.find(event) == [], gateway.failure(event)


def assert_the_same_story(pair: GatewayPair) -> None:
    """Each change of mode is in both logs: the same epoch, mode and reason."""
    keys = ("epoch", "epoch_id", "was", "mode", "reason", "chained_source_key", "keys")

    def story(changes: list[Fields]) -> list[tuple[object, ...]]:
        return [tuple(change[key] for key in keys) for change in changes]

    # The second one may still be writing what the first one has written.
    count = len(pair.a.find("mode_changed"))
    poll("both tell as many changes", lambda: len(pair.b.find("mode_changed")) >= count)
    told = story(pair.a.find("mode_changed"))
    assert story(pair.b.find("mode_changed"))[: len(told)] == told
    assert all(one[3] != one[2] for one in told)


def falls(pair: GatewayPair, reasons: set[str], *controls: dict[str, Any]) -> None:
    """Break something; both gateways fall back, for one of these reasons."""
    assert pair.kme is not None
    mark_a, mark_b = pair.a.mark(), pair.b.mark()
    for control in controls:
        pair.kme.control(**control)
    for gateway, mark in ((pair.a, mark_a), (pair.b, mark_b)):
        fallen = gateway.wait_for_event("mode_changed", after=mark, mode="classical-only")
        assert (fallen["level"], fallen["keys"]) == ("warning", 0)
        assert fallen["reason"] in reasons


def climbs(pair: GatewayPair) -> None:
    """Heal everything; both gateways are hybrid again, by themselves."""
    assert pair.kme is not None
    mark_a, mark_b = pair.a.mark(), pair.b.mark()
    pair.kme.control("restore")
    for gateway, mark in ((pair.a, mark_a), (pair.b, mark_b)):
        climbed = gateway.wait_for_event("mode_changed", after=mark, mode="hybrid")
        assert (climbed["was"], climbed["level"]) == ("classical-only", "info")


#: What each fault of a KME makes of calls to it.
KME_FAULTS = {
    "kill": "kme_unreachable",
    "unavailable": "kme_unavailable",
    "garbage": "kme_invalid_response",
    "hang": "kme_timeout",
}


@pytest.mark.parametrize(
    ("action", "kme"),
    [
        ("kill", "kme-a"),
        ("garbage", "kme-b"),
        pytest.param("kill", "kme-b", marks=pytest.mark.slow),
        pytest.param("garbage", "kme-a", marks=pytest.mark.slow),
        pytest.param("unavailable", "kme-a", marks=pytest.mark.slow),
        pytest.param("unavailable", "kme-b", marks=pytest.mark.slow),
        pytest.param("hang", "kme-a", marks=pytest.mark.slow),
        pytest.param("hang", "kme-b", marks=pytest.mark.slow),
    ],
)
def test_a_broken_kme_on_either_side_costs_no_byte_and_no_stream(
    make_pair: MakePair, backend: Backend, action: str, kme: str
) -> None:
    pair = make_pair(peer=QUICK_TO_CLIMB)
    with under_load(pair, backend) as load:
        falls(pair, {KME_FAULTS[action]}, {"action": action, "kme": kme})
        load.goes_on()
        climbs(pair)
        load.goes_on()


def test_an_eavesdropper_costs_no_byte_and_no_stream(make_pair: MakePair, backend: Backend) -> None:
    pair = make_pair(peer=QUICK_TO_CLIMB)
    with under_load(pair, backend) as load:
        falls(pair, {"qber_high"}, {"action": "degrade", "rate_factor": 0.0, "qber": 0.2})
        load.goes_on()
        climbs(pair)
        load.goes_on()


@pytest.mark.parametrize(
    "link",
    [
        {"action": "cut"},
        pytest.param({"action": "jam"}, marks=pytest.mark.slow),
        pytest.param(
            {"action": "degrade", "rate_factor": 0.0, "qber": 0.01}, marks=pytest.mark.slow
        ),
    ],
    ids=["cut", "jammed", "exhausted"],
)
def test_keys_that_run_out_cost_no_byte_and_no_stream(
    make_pair: MakePair, backend: Backend, link: dict[str, Any]
) -> None:
    pair = make_pair(peer=OFTEN | {"qkd_keys_per_epoch": 4})
    with under_load(pair, backend) as load:
        # What the gateway has in stock comes first; the KMEs' own store would last for minutes.
        falls(pair, {"keys_exhausted"}, link, {"action": "drain"})
        load.goes_on()
        climbs(pair)
        load.goes_on()


def test_kmes_out_of_step_cost_no_byte_and_no_stream(make_pair: MakePair, backend: Backend) -> None:
    pair = make_pair(peer=OFTEN)
    with under_load(pair, backend) as load:
        falls(pair, {"key_mismatch"}, {"action": "desync"})
        load.goes_on()
        # Nobody but the two gateways together can tell: each KME's calls all went well.
        for gateway in (pair.a, pair.b):
            assert gateway.find("epoch_failed", reason="key_mismatch")
        climbs(pair)
        load.goes_on()

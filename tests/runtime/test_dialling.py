"""The dialling end: what goes wrong with one tunnel costs that tunnel."""

from __future__ import annotations

import gc
from typing import Any

import pytest

from qproxy.modes import Mode
from qproxy.runtime import peer
from tests.runtime.pair import gateway_pair

pytestmark = pytest.mark.hastened


async def test_a_tunnel_that_cannot_be_made_costs_neither_the_gateway_nor_a_socket(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made: list[str] = []
    connection = peer.Connection

    def fails_first(*arguments: Any, **options: Any) -> Any:
        made.append("tried")
        if len(made) == 1:
            raise RuntimeError("no memory")
        return connection(*arguments, **options)

    monkeypatch.setattr(peer, "Connection", fails_first)
    async with gateway_pair() as pair:
        await pair.until_mode(Mode.HYBRID)
    assert len(made) == 2
    assert [record.getMessage() for record in caplog.records].count("tunnel_failed") == 1
    gc.collect()  # A socket that nobody closed would warn, and warnings are errors.

"""What the tests of the rules have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from qproxy.errors import Reason, RemoteProtocolError
from qproxy.keys import QkdKey
from qproxy.modes import Mode
from qproxy.tunnel.events import TunnelClosed
from qproxy.tunnel.messages import MessageType
from qproxy.tunnel.settings import Role
from tests.tunnel.helpers import Pair, established, make_pair, qkd_keys

BOTH = (Role.CLIENT, Role.SERVER)
MODES = pytest.mark.parametrize("mode", list(Mode))
FIRST_OR_LATER = pytest.mark.parametrize("first", [True, False], ids=["first", "later"])


def keys_for(mode: Mode, *ids: str) -> list[QkdKey]:
    return qkd_keys(*(ids or ("a-key",))) if mode is Mode.HYBRID else []


def ready(first: bool, **settings: Any) -> Pair:
    """A pair whose next epoch is the first, in TLS, or a later one, in records."""
    if not first:
        return established(**settings)
    pair = make_pair(**settings)
    pair.pump()
    return pair


def fails(pair: Pair, reason: Reason, action: Callable[[], object], role: Role) -> None:
    """``action`` makes one end find fault with the other, and end the tunnel for it."""
    with pytest.raises(RemoteProtocolError) as caught:
        action()
    pair.collect(role)
    assert caught.value.reason is reason, caught.value
    assert pair.last(role, TunnelClosed) == TunnelClosed(reason, clean=False)
    assert pair.end(role).closed


def client_epochs(pair: Pair) -> Any:
    return pair.client._epochs


def server_epochs(pair: Pair) -> Any:
    return pair.server._epochs


def flip_last(message: bytes) -> bytes:
    return message[:-1] + bytes([message[-1] ^ 1])


def message_of(kind: MessageType, change: Callable[[bytes], bytes]) -> Callable[[bytes], list]:
    """For ``intercept``: change messages of one kind."""
    return lambda message: [change(message) if message[0] == kind else message]

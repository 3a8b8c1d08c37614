"""The protocol's states and what moves them, as tables.

Anything a table does not list is an error: of the peer's where a message caused it, of ours where
a call did. docs/protocol.md shows the same tables as diagrams.
"""

from __future__ import annotations

import enum


class Phase(enum.Enum):
    """A tunnel's life."""

    TLS = "tls"  # OpenSSL's handshake
    FIRST_EPOCH = "first_epoch"  # epoch messages inside TLS
    AWAIT_COMMITTED = "await_committed"  # client: CONFIRM sent, first record of epoch 1 awaited
    OPEN = "open"
    ENDING = "ending"  # END sent, the peer's awaited
    CLOSED = "closed"


class EpochEvent(enum.Enum):
    """What can happen to an exchange of epoch messages."""

    OFFER = "OFFER"
    ACCEPT = "ACCEPT"
    REJECT = "REJECT"
    CONFIRM = "CONFIRM"
    ABORT = "ABORT"
    SWITCH = "SWITCH"


class ClientEpochState(enum.Enum):
    """The client's side of one exchange."""

    IDLE = "idle"
    OFFERED = "offered"  # one OFFER outstanding
    COMMITTED = "committed"  # CONFIRM sent; the server's switch awaited


class ServerEpochState(enum.Enum):
    """The server's side of one exchange."""

    IDLE = "idle"
    REDEEMING = "redeeming"  # the driver fetches the keys the OFFER names
    ACCEPTED = "accepted"  # ACCEPT sent; CONFIRM awaited
    COMMITTED = "committed"  # CONFIRM verified; the client's switch awaited


CLIENT_EPOCH: dict[tuple[ClientEpochState, EpochEvent], ClientEpochState] = {
    (ClientEpochState.IDLE, EpochEvent.OFFER): ClientEpochState.OFFERED,
    (ClientEpochState.OFFERED, EpochEvent.ACCEPT): ClientEpochState.COMMITTED,
    (ClientEpochState.OFFERED, EpochEvent.REJECT): ClientEpochState.IDLE,
    (ClientEpochState.OFFERED, EpochEvent.ABORT): ClientEpochState.IDLE,
    (ClientEpochState.COMMITTED, EpochEvent.SWITCH): ClientEpochState.IDLE,
}

SERVER_EPOCH: dict[tuple[ServerEpochState, EpochEvent], ServerEpochState] = {
    (ServerEpochState.IDLE, EpochEvent.OFFER): ServerEpochState.REDEEMING,
    (ServerEpochState.REDEEMING, EpochEvent.ACCEPT): ServerEpochState.ACCEPTED,
    (ServerEpochState.REDEEMING, EpochEvent.REJECT): ServerEpochState.IDLE,
    (ServerEpochState.REDEEMING, EpochEvent.ABORT): ServerEpochState.IDLE,
    (ServerEpochState.ACCEPTED, EpochEvent.ABORT): ServerEpochState.IDLE,
    (ServerEpochState.ACCEPTED, EpochEvent.CONFIRM): ServerEpochState.COMMITTED,
    (ServerEpochState.COMMITTED, EpochEvent.SWITCH): ServerEpochState.IDLE,
}

"""Numbers that both ends must agree on, because they are part of the protocol.

Numbers a gateway may choose for itself stand in :mod:`qproxy.tunnel.settings`.
Source: docs/protocol.md.
"""

from __future__ import annotations

#: OFFER.version.
PROTOCOL_VERSION = 1

#: Stream credit each direction of a stream starts with, in bytes.
INITIAL_STREAM_CREDIT_BYTES = 128 * 1024
#: Session credit each direction of a tunnel starts with, in bytes. Larger than a stream's, or
#: one stream nobody reads could stop all the others.
INITIAL_SESSION_CREDIT_BYTES = 8 * 1024 * 1024

#: Longest epoch message, in bytes. An OFFER with eight UUIDs has about 2.5 KiB.
MAX_EPOCH_MESSAGE_BYTES = 8 * 1024
#: QKD keys one OFFER may name.
MAX_KEYS_PER_OFFER = 8
#: Attempts at one epoch: the client makes no more, and the server takes none.
MAX_ATTEMPTS_PER_EPOCH = 1 << 15
#: Epochs of one tunnel: at one a second, 136 years.
MAX_EPOCH = 0xFFFF_FFFF

#: Records the client may still read under the old key after it has verified ACCEPT: what the
#: server has under way until CONFIRM reaches it (a round trip). Its switch must be among them,
#: but for the last.
MAX_RECORDS_BEFORE_SERVER_SWITCH = 1 << 20
#: The client's switch is the very next record after CONFIRM.
MAX_RECORDS_BEFORE_CLIENT_SWITCH = 1

#: Session tickets an OpenSSL server may send before its first epoch message.
MAX_SESSION_TICKETS = 2
#: Bytes of TLS records each side may send before the hand-over. A mutual ML-DSA-87 handshake
#: with two intermediates needs about 40 KiB.
MAX_TLS_PHASE_BYTES = 256 * 1024

#: Longest service name, SAE ID, peer name or client address, in UTF-8 bytes.
MAX_NAME_BYTES = 255
#: Opaque data of a PING.
PING_BYTES = 8

"""Every domain-separation label of the protocol, and nothing else.

Source: docs/protocol.md, "Labels". A label is never reused for a second purpose and never
changed without a new protocol version.
"""

from __future__ import annotations

#: ALPN protocol ID of the tunnel's TLS handshake (RFC 7301).
ALPN = b"qproxy/1"
#: Label of the TLS exporter (RFC 9846 §7.5) that binds an epoch to a TLS handshake.
EXPORTER = b"EXPORTER-qproxy-1"

#: Prefix of every label given to HKDF-Expand.
PREFIX = b"qproxy1 "

#: HKDF-Extract salt for CK_1.
INIT = b"qproxy1 init"
#: Domain of the transcript hash T_n.
TRANSCRIPT = b"qproxy1 transcript"
#: Domain of the hash over this epoch's failed attempts.
HISTORY = b"qproxy1 history"

#: Expand labels, from the epoch secret ES_n.
CHAIN = b"chain"
CLIENT_TRAFFIC = b"client traffic"
SERVER_TRAFFIC = b"server traffic"
CLIENT_CONFIRM = b"client confirm"
SERVER_CONFIRM = b"server confirm"
EPOCH_ID = b"epoch id"

#: Expand labels, from a traffic secret.
KEY = b"key"
IV = b"iv"

"""What goes over a connection between the client and the service.

Every exchange begins with a header from the client: 1 byte what, 4 bytes a number, 8 bytes a count.

=====  =============================================================================================
``E``  echo: the header is the beginning of a message of *count* bytes, which comes back as it is.
       The number is the message's own.
``D``  down: the service sends *count* bytes
``U``  up: the client sends *count* bytes; then the service sends ``!``
``B``  both at once; when the service has sent and received *count* bytes, it sends ``!``
=====  =============================================================================================

Bulk bytes are those of :func:`pattern`, over and over, from the number on. In capitals only its
first WINDOW_BYTES go round, which stay in the processor's cache, and nobody looks at what arrives.
In small letters (``d``, ``u``, ``b``) all of it goes round and every byte is compared: then ``?``
stands for ``!`` where the service received anything else.
"""

from __future__ import annotations

import functools
import random
import socket
import struct

#: what, number, count.
HEADER = struct.Struct(">cIQ")
#: Bytes of the pattern that a timed transfer repeats.
WINDOW_BYTES = 1024 * 1024
#: Length of the pattern: bytes moved by less than that are noticed.
PATTERN_BYTES = 8 * 1024 * 1024
#: Where the pattern begins differs by so much from one connection to the next, in bytes, so that
#: bytes of another connection's are noticed too.
STEP_BYTES = 9973
#: All right, and not, at the end of an upload.
GOOD, BAD = b"!", b"?"
_SEED = 4321


class TrafficError(Exception):
    """The path under test lost, changed or held up bytes."""


@functools.cache
def pattern() -> bytes:
    """Random bytes, the same in every process."""
    return random.Random(_SEED).randbytes(PATTERN_BYTES)


def message(number: int, size: int) -> bytes:
    """An echo message of ``size`` bytes, at least those of a header."""
    header = HEADER.pack(b"E", number, size)
    begin = number * 61 % WINDOW_BYTES
    return header + pattern()[begin : begin + size - len(header)]


def prepare(sock: socket.socket) -> None:
    """Not to block, not to wait for more."""
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

"""The line between two processes: whole frames, sockets with them, and bounds."""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path

import pytest
import trio

from qproxy.supervisor.channel import (
    MAX_FRAME_BYTES,
    MAX_QUEUED_FRAMES,
    MAX_QUEUED_SOCKETS,
    Channel,
    ChannelError,
)


def descriptors():
    """Those this process has open."""
    return {path.name for path in Path("/proc/self/fd").iterdir()}


@pytest.fixture
async def ends():
    """Two channels that reach each other, both sending."""
    left, right = (Channel(sock) for sock in socket.socketpair())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(left.run)
        nursery.start_soon(right.run)
        yield left, right
        nursery.cancel_scope.cancel()
    left.close()
    right.close()


@pytest.fixture
async def raw():
    """A channel, and the bare socket at its other end."""
    ours, theirs = socket.socketpair()
    channel = Channel(ours)
    yield channel, theirs
    theirs.close()
    channel.close()


async def test_messages_come_whole_and_in_order(ends):
    left, right = ends
    large = "x" * 3_000_000
    left.send({"kind": "one"})
    left.send({"kind": "two", "text": large})
    left.send_bytes(b"")
    right.send({"kind": "back"})
    with trio.fail_after(10):
        assert (await right.receive()).message() == {"kind": "one"}
        assert (await right.receive()).message()["text"] == large
        assert (await right.receive()).body == b""
        assert (await left.receive()).message() == {"kind": "back"}
        await left.flush()


async def test_byte_by_byte_is_the_same(raw):
    channel, far = raw
    async with trio.open_nursery() as nursery:

        async def drip():
            for byte in struct.pack(">I?", 13, False) + b'{"kind": "x"}':
                far.send(bytes([byte]))
                await trio.testing.wait_all_tasks_blocked()

        nursery.start_soon(drip)
        with trio.fail_after(10):
            assert (await channel.receive()).message() == {"kind": "x"}


async def test_sockets_go_with_their_messages_and_leave_no_descriptor_behind(ends):
    left, right = ends
    pairs = [socket.socketpair() for _ in range(3)]
    before = descriptors()
    for number, (given, _) in enumerate(pairs):
        left.send({"kind": "plain"})
        left.send({"kind": "tunnel", "number": number}, given)
    with trio.fail_after(10):
        for number, (_, kept) in enumerate(pairs):
            assert (await right.receive()).sock is None
            frame = await right.receive()
            assert frame.message()["number"] == number
            with frame.sock as sock, kept:
                assert not os.get_inheritable(sock.fileno())
                kept.send(b"%d" % number)
                assert sock.recv(10) == b"%d" % number
        await left.flush()
    ours = {str(sock.fileno()) for pair in pairs for sock in pair}
    assert ours == {"-1"}
    assert descriptors() < before


async def test_the_end_of_the_other_process_is_the_end(raw):
    channel, far = raw
    far.send(struct.pack(">I?", 100, False) + b"half")
    far.close()
    assert await channel.receive() is None
    channel.send({"kind": "nobody hears"})
    with trio.fail_after(10):
        await channel.run()


async def test_what_was_on_its_way_is_closed_with_the_line(raw):
    channel, far = raw
    one, other = socket.socketpair()
    socket.send_fds(far, [struct.pack(">I?", 100, True)], [one.fileno()])
    one.close()
    with trio.move_on_after(0.05):
        await channel.receive()
    given, kept = socket.socketpair()
    channel.send({"kind": "tunnel"}, given)
    channel.close()
    channel.close()
    assert other.recv(1) == kept.recv(1) == b""
    other.close()
    kept.close()


async def test_a_frame_may_not_be_too_large(raw):
    channel, far = raw
    far.send(struct.pack(">I?", MAX_FRAME_BYTES + 1, False))
    with pytest.raises(ChannelError, match="at most"):
        await channel.receive()


async def test_a_socket_that_is_announced_must_be_there(raw):
    channel, far = raw
    far.send(struct.pack(">I?", 2, True) + b"{}")
    with pytest.raises(ChannelError, match="without its socket"):
        await channel.receive()


async def test_sockets_without_frames_are_bounded(raw):
    channel, far = raw
    one, other = socket.socketpair()
    with one, other:
        for _ in range(3):
            socket.send_fds(far, [b"\0"], [one.fileno()] * (MAX_QUEUED_SOCKETS // 2))
        with pytest.raises(ChannelError, match="more sockets"):
            await channel.receive()


@pytest.mark.parametrize("body", [b"", b"[]", b"7", b"{", b"\xff", b"[" * 100_000])
async def test_a_message_is_an_object(raw, body):
    channel, far = raw
    far.send(struct.pack(">I?", len(body), False) + body)
    frame = await channel.receive()
    with pytest.raises(ChannelError, match="without a message"):
        frame.message()


async def test_what_nobody_takes_does_not_pile_up(raw):
    channel, _ = raw
    for _ in range(MAX_QUEUED_FRAMES):
        channel.send({})
    given, kept = socket.socketpair()
    with given, kept:
        with pytest.raises(ChannelError, match="queued"):
            channel.send({}, given)
        kept.send(b"x")
        assert given.recv(1) == b"x"

"""Starting a worker: this interpreter and this program anew, with one end of a channel.

Not a fork: this process has threads, and what they hold locked would stay locked in the child. The
child inherits standard output and error, its channel and the unix sockets it listens on; every
other descriptor of ours is closed in it. What it runs with comes over the channel, so that a
configuration changed on disk since then does not make one worker unlike the others, and nothing
but a number is on its command line.
"""

from __future__ import annotations

import json
import pickle
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol

import trio

from qproxy.config.model import GatewayConfig
from qproxy.supervisor.channel import Channel, ChannelError

#: Imports are looked for where this process found them: a directory that a worker happens to be
#: started in must not come before. Ctrl-C in a terminal reaches all; only the supervisor answers.
_BOOTSTRAP: Final = (
    "import json, signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); "
    "sys.path[:] = json.loads(sys.argv.pop(1)); "
    "from qproxy.cli.main import main; sys.exit(main(sys.argv[1:]))"
)


@dataclass(frozen=True, slots=True)
class Setup:
    """What a worker is told first.

    Attributes:
        number: which one it is, from 0.
        config: what it runs.
        shared: descriptors it has inherited, by the name of the listener.
    """

    number: int
    config: GatewayConfig
    shared: Mapping[str, int]

    def encode(self) -> bytes:
        """For a channel."""
        return pickle.dumps(self)

    @staticmethod
    def decode(body: bytes) -> Setup:
        """What our supervisor has encoded. Raises ChannelError."""
        # From the process that started us and chose our code: it could do nothing worse with this.
        found = pickle.loads(body)  # noqa: S301
        if not isinstance(found, Setup):
            raise ChannelError("expected a worker's setup")
        return found


class WorkerProcess(Protocol):
    """A started process, as its slot sees it."""

    @property
    def pid(self) -> int:
        """Its process ID."""

    async def wait(self) -> int:
        """Wait for its end; the exit code, or the negative number of the signal that killed it."""

    def kill(self) -> None:
        """End it now. Idempotent."""


async def start_worker(
    number: int, config: GatewayConfig, shared: Mapping[str, socket.socket]
) -> tuple[WorkerProcess, Channel]:
    """Start a worker and tell it what to run. Raises OSError.

    Args:
        number: which one, from 0.
        config: the worker's own.
        shared: unix sockets it accepts from, by the name of the listener.
    """
    ours, theirs = socket.socketpair()
    channel = Channel(ours)
    try:
        with theirs:
            descriptors = {name: sock.fileno() for name, sock in shared.items()}
            arguments = ["worker", "--number", str(number), "--channel", str(theirs.fileno())]
            process = await trio.lowlevel.open_process(
                [
                    sys.executable,
                    "-P",
                    *_flags(),
                    "-c",
                    _BOOTSTRAP,
                    json.dumps(sys.path),
                    *arguments,
                ],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno(), *descriptors.values()],
            )
        channel.send_bytes(Setup(number, config, descriptors).encode())
    except BaseException:
        channel.close()
        raise
    return process, channel


def _flags() -> list[str]:
    """How this interpreter was told to be: what is off here must not be on in a worker."""
    flags = sys.flags
    found = {
        "-I": flags.isolated,
        "-E": flags.ignore_environment and not flags.isolated,
        "-s": flags.no_user_site and not flags.isolated,
        "-S": flags.no_site,
        "-B": flags.dont_write_bytecode,
        "-O": flags.optimize,
    }
    options = [flag for flag, on in found.items() if on]
    return [*options, *(f"-W{option}" for option in sys.warnoptions)]

"""``qproxy kme-sim`` that also writes down every key and key ID it makes, one in hex per line.

The simulator is the real one; only its source of random bytes is listened to, so that a test can
search for those bytes where they must not be.

    python recording_kme.py CONFIG RECORDING
"""

from __future__ import annotations

import secrets
import signal
import sys
from functools import partial
from pathlib import Path

import trio

from qproxy.config.reader import load_kme_sim_config
from qproxy.log import close_logging, configure_logging
from qproxy.sim.server import run_kme_sim


def main() -> None:
    """Run until SIGTERM."""
    config, recording = load_kme_sim_config(Path(sys.argv[1])), Path(sys.argv[2])
    configure_logging(config.log)
    with recording.open("a", buffering=1) as file:

        def recorded(size: int) -> bytes:
            data = secrets.token_bytes(size)
            file.write(data.hex() + "\n")
            return data

        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            trio.run(partial(run_kme_sim, config, random_bytes=recorded))
        except* KeyboardInterrupt:
            pass
        finally:
            close_logging()


main()

"""The two programs."""

from __future__ import annotations

import resource
import sys

from bench.lines import answer_lines
from bench.traffic.client import Client
from bench.traffic.service import Service
from bench.traffic.wire import TrafficError


def _run_service() -> None:
    """Print the port, then serve until the process is ended."""
    service = Service()
    print(service.port, flush=True)
    service.run()


def _run_client() -> None:
    client = Client()
    answer_lines(client.handle, OSError, TrafficError, failed=client.close)


if __name__ == "__main__":
    _, _most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (_most, _most))
    if sys.argv[1:] == ["service"]:
        _run_service()
    elif sys.argv[1:] == ["client"]:
        _run_client()
    else:
        sys.exit("usage: python -m bench.traffic service|client")

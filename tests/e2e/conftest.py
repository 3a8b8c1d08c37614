"""Fixtures of the end-to-end tests. Everything they start, they end."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.pair import GatewayPair
from tests.e2e.sockets import Backend

MakePair = Callable[..., GatewayPair]


@pytest.fixture
def backend() -> Iterator[Backend]:
    """A service in the hands of the test."""
    with Backend() as service:
        yield service


@pytest.fixture
def make_pair(tmp_path: Path, backend: Backend) -> Iterator[MakePair]:
    """Makes and starts a pair whose listener ``app`` leads to ``backend``, unless told otherwise.

    Its logs are checked in the end.
    """
    pairs: list[GatewayPair] = []
    with contextlib.ExitStack() as ending:

        def make(*, start: bool = True, tunnel: bool = True, **options: Any) -> GatewayPair:
            options = {"listeners": {"app": {}}, "services": {"app": backend.address}} | options
            directory = tmp_path / f"pair-{len(pairs)}"
            directory.mkdir()
            pair = GatewayPair(directory, **options)
            ending.callback(pair.close)
            if start:
                pair.start(tunnel=tunnel)
            pairs.append(pair)
            return pair

        yield make
    for pair in pairs:
        pair.check_logs()

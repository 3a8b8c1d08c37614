"""What every test leaves as it found it."""

from __future__ import annotations

import logging
import os
import signal
import tempfile
from collections.abc import Iterator

import pytest
from trio.testing import MockClock

from tests import hastened


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked ``hastened`` run by that clock: their mark goes before pytest-trio's own."""
    for item in items:
        if item.get_closest_marker("hastened") is not None:
            item.add_marker(pytest.mark.trio(run=hastened.run), append=False)


@pytest.fixture(scope="session", autouse=True)
def _programs_compile_once() -> Iterator[None]:
    """Hundreds of programs are started. Byte code that may not lie beside them lies elsewhere."""
    if "PYTHONDONTWRITEBYTECODE" not in os.environ:
        yield
        return
    with (
        pytest.MonkeyPatch.context() as patch,
        tempfile.TemporaryDirectory(prefix="qproxy-tests-", ignore_cleanup_errors=True) as path,
    ):
        patch.delenv("PYTHONDONTWRITEBYTECODE")
        patch.setenv("PYTHONPYCACHEPREFIX", path)
        yield


@pytest.fixture(scope="session", autouse=True)
def _programs_hear_interrupts() -> None:
    """A shell makes what it runs in the background deaf to SIGINT, and so what that starts."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def unhurried_clock() -> MockClock:
    """Goes slower than the machine, for a test in which slow answers would be a finding."""
    return MockClock(rate=0.1)


@pytest.fixture(autouse=True)
def _log_levels_as_they_were() -> Iterator[None]:
    """A command run in this process sets levels, and other tests look for what they drop."""
    loggers = [logging.getLogger(), logging.getLogger("qproxy")]
    before = [(logger, logger.level) for logger in loggers]
    yield
    for logger, level in before:
        logger.setLevel(level)

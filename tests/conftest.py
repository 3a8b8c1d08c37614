"""What every test leaves as it found it."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from tests import hastened


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked ``hastened`` run by that clock: their mark goes before pytest-trio's own."""
    for item in items:
        if item.get_closest_marker("hastened") is not None:
            item.add_marker(pytest.mark.trio(run=hastened.run), append=False)


@pytest.fixture(autouse=True)
def _log_levels_as_they_were() -> Iterator[None]:
    """A command run in this process sets levels, and other tests look for what they drop."""
    loggers = [logging.getLogger(), logging.getLogger("qproxy")]
    before = [(logger, logger.level) for logger in loggers]
    yield
    for logger, level in before:
        logger.setLevel(level)

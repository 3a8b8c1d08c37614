"""What whoever watches a run sees: a line for each thing measured, and a bar where one can be.

Bars come from tqdm (``pip install 'qproxy[report]'``). Without it, or where standard error is no
terminal, the lines are all there is.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

try:
    from tqdm import tqdm
except ImportError:  # the extra is not installed
    tqdm = None  # type: ignore[assignment,misc]


def say(text: str) -> None:
    """One line, above the bars where there are any."""
    if has_bars():
        tqdm.write(text, file=sys.stderr)
    else:
        print(text, file=sys.stderr, flush=True)


def told(values: Mapping[str, float]) -> str:
    """Figures by name, for such a line."""
    return "  ".join(f"{name} {value:.4g}" for name, value in values.items())


@contextlib.contextmanager
def bar(title: str, total: int) -> Iterator[Callable[[], None]]:
    """A bar of so many steps, for as long as the block runs.

    Gives:
        What to call after each step.
    """
    if not has_bars():
        yield lambda: None
        return
    with tqdm(total=total, desc=title, file=sys.stderr, leave=False, unit="step") as shown:
        yield lambda: _advance(shown)


def has_bars() -> bool:
    """Whether bars can be drawn here."""
    return tqdm is not None and sys.stderr.isatty()


def _advance(shown: tqdm[Any]) -> None:
    shown.update()

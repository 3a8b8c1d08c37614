"""Says live what happens: one short line each, with the time since the start."""

from __future__ import annotations

import enum
import os
from collections.abc import Callable, Mapping
from typing import TextIO

from qproxy.log import escape


class Tone(enum.StrEnum):
    """How a line is meant; the value is its colour on a terminal (ECMA-48 SGR)."""

    PLAIN = ""
    STEP = "1"
    GOOD = "32"
    WARN = "33"
    BAD = "31"


class Narrator:
    """Writes lines.

    Args:
        stream: where to.
        elapsed_s: seconds since the start.
        colour: whether to colour lines.
    """

    def __init__(self, stream: TextIO, elapsed_s: Callable[[], float], *, colour: bool) -> None:
        self._stream = stream
        self._elapsed_s = elapsed_s
        self._colour = colour

    def say(self, who: str, text: str, tone: Tone = Tone.PLAIN) -> None:
        """One line: the time, who, and what."""
        line = f"{self._elapsed_s():6.1f} s  {who:<8} {escape(text, backslashes=False)}"
        print(paint(line, tone, colour=self._colour), file=self._stream, flush=True)


def paint(text: str, tone: Tone, *, colour: bool) -> str:
    """Text in its tone's colour, or as it is."""
    return f"\x1b[{tone.value}m{text}\x1b[0m" if colour and tone.value else text


def wants_colour(stream: TextIO, environment: Mapping[str, str] = os.environ) -> bool:
    """Only on a terminal, and not against the user's wish. Source: no-color.org."""
    return stream.isatty() and not environment.get("NO_COLOR") and environment.get("TERM") != "dumb"

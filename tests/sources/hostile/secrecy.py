"""Looks for secrets in whatever a program says."""

from __future__ import annotations

import base64
import traceback
from collections.abc import Iterable

#: A secret that shows this much of itself is no secret, in characters of any spelling.
SHOWN_CHARS = 10


def spellings(secret: bytes) -> list[str]:
    """How a key might be written by a log, a repr or an error message."""
    text = base64.b64encode(secret).decode()
    return [
        text,
        base64.urlsafe_b64encode(secret).decode(),
        secret.hex(),
        secret.hex().upper(),
        secret.hex(" "),
        secret.hex(":"),
        repr(secret)[2:-1],
        secret.decode("latin-1"),
        str(list(secret))[1:-1],
    ]


def found_in(said: str, secrets: Iterable[bytes]) -> list[str]:
    """Parts of secrets that stand in a text."""
    pieces = []
    shown = {said[at : at + SHOWN_CHARS] for at in range(len(said) - SHOWN_CHARS + 1)}
    for secret in secrets:
        for text in spellings(secret):
            for start in range(0, max(1, len(text) - SHOWN_CHARS), SHOWN_CHARS // 2):
                piece = text[start : start + SHOWN_CHARS]
                if piece in shown:
                    pieces.append(piece)
    return pieces


def all_of(error: BaseException) -> str:
    """Everything that can be got out of an exception and what is chained to it."""
    said, seen = [], set()
    rest: list[BaseException | None] = [error]
    while rest:
        link = rest.pop()
        if link is None or id(link) in seen:
            continue
        seen.add(id(link))
        said += [repr(link), str(link), repr(link.args), repr(getattr(link, "__dict__", {}))]
        said += getattr(link, "__notes__", [])
        rest += [link.__cause__, link.__context__, *getattr(link, "exceptions", ())]
    return "\n".join([*said, *traceback.format_exception(error)])

"""A load generator's client: requests on standard input, answers on standard output, one JSON
object a line. Nothing but the standard library is imported.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any


def answer_lines(
    handle: Callable[[dict[str, Any]], dict[str, Any]],
    *expected: type[Exception],
    failed: Callable[[], None] = lambda: None,
) -> None:
    """Answer requests until there are no more.

    Args:
        handle: does what one of them asks for.
        expected: what it may raise; the answer then has an ``error``.
        failed: called then.
    """
    for line in sys.stdin:
        try:
            answer = handle(json.loads(line))
        except expected as error:
            failed()
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)

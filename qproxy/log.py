"""Structured logs on the standard library's logging: one line per event, never a secret.

    log = get_logger(__name__)
    log.info("tunnel_up", peer="gw-b", mode=Mode.HYBRID, tls_group="X25519MLKEM768")

    2026-01-31T12:00:00.123Z info tunnel_up peer=gw-b mode=hybrid tls_group=X25519MLKEM768
    {"time": "2026-01-31T12:00:00.123Z", "level": "info", "event": "tunnel_up", ...}

Theory of operation. Whoever reads a log must be able to trust it, and much of what is worth
logging was chosen by somebody hostile. So an event is a fixed word and its facts are fields;
every field is bounded in length and written in printable ASCII only, which leaves no way to
forge a line or to speak to a terminal. Which types may be a field is a closed list. Bytes and
QKD keys are on it as "redacted", whatever is not on it gives its type's name and nothing else,
so that a careless call cannot print a secret that sits inside some object.

Lines are formatted where the event happens and written by a thread behind a bounded queue: a
reader of standard error that has stopped reading costs log lines (counted, and told as soon as
it reads again), not traffic.
"""

from __future__ import annotations

import enum
import ipaddress
import json
import logging
import math
import queue
import re
import sys
import threading
import traceback
import uuid
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import PurePath
from typing import Final, TextIO

from qproxy.address import TcpAddress, UnixAddress
from qproxy.config.model import LogConfig, LogFormat, LogLevel
from qproxy.errors import QproxyError
from qproxy.keys import QkdKey

#: Longest string in a field, in characters before escaping; the rest is cut and counted.
MAX_FIELD_CHARS: Final = 512
#: Longest traceback, in characters before escaping. Only written at level debug.
MAX_TRACEBACK_CHARS: Final = 16_384
#: Most fields on one event, and most items of a list or mapping in a field.
MAX_FIELDS: Final = 32
#: How deep lists and mappings may nest in a field.
MAX_FIELD_DEPTH: Final = 4
#: Widest integer that is written out; anything wider may be key material.
MAX_INTEGER_BITS: Final = 128
#: Lines that may wait for standard error before new ones are dropped.
MAX_QUEUED_LINES: Final = 4096
#: How long the end of the program waits for lines still in the queue.
CLOSE_TIMEOUT_S: Final = 2.0

_LEVELS: Final = {
    LogLevel.DEBUG: logging.DEBUG,
    LogLevel.INFO: logging.INFO,
    LogLevel.WARNING: logging.WARNING,
    LogLevel.ERROR: logging.ERROR,
}
_ROOT: Final = "qproxy"
_RESERVED: Final = frozenset({"time", "level", "event", "logger", "message", "traceback"})
_BARE: Final = re.compile(r"[A-Za-z0-9_.:/@+%,*\[\]-]+\Z")
_NOT_NAME: Final = re.compile(r"[^A-Za-z0-9_.-]")
_NOT_PLAIN: Final = re.compile(r"[^\x20-\x7e]")

_Plain = None | bool | int | float | str | list["_Plain"] | dict[str, "_Plain"]


class Logger:
    """Writes events of one part of the program, some fields the same on each."""

    __slots__ = ("_fields", "_logger")

    def __init__(self, logger: logging.Logger, fields: Mapping[str, object]) -> None:
        self._logger = logger
        self._fields = dict(fields)

    def bind(self, /, **fields: object) -> Logger:
        """A logger that adds these fields to every event."""
        return Logger(self._logger, {**self._fields, **fields})

    def is_enabled_for(self, level: LogLevel) -> bool:
        """Whether an event of this level would be written; spares building costly fields."""
        return self._logger.isEnabledFor(_LEVELS[level])

    def debug(self, event: str, /, **fields: object) -> None:
        """For whoever looks for a fault; may be many lines a second."""
        self._log(logging.DEBUG, event, fields)

    def info(self, event: str, /, **fields: object) -> None:
        """Something an operator wants to know happened, as it should."""
        self._log(logging.INFO, event, fields)

    def warning(self, event: str, /, **fields: object) -> None:
        """Works, but not as it should: a fall back, a refused peer."""
        self._log(logging.WARNING, event, fields)

    def error(self, event: str, /, **fields: object) -> None:
        """Something does not work and needs somebody."""
        self._log(logging.ERROR, event, fields)

    def unexpected(self, event: str, error: BaseException, /, **fields: object) -> None:
        """An error that was not foreseen; its traceback is written at level debug only."""
        self._log(logging.ERROR, event, {"error": error, **fields}, error)

    def _log(
        self, level: int, event: str, fields: dict[str, object], error: BaseException | None = None
    ) -> None:
        if self._logger.isEnabledFor(level):
            # "%s" with the event as its argument: an event holding "%" stays what it is.
            extra = {"fields": {**self._fields, **fields}}
            self._logger.log(level, "%s", event, extra=extra, exc_info=error)


def get_logger(name: str, /, **fields: object) -> Logger:
    """The logger of a module; pass `__name__`. Fields given here are on every event."""
    return Logger(logging.getLogger(name), fields)


def configure_logging(
    config: LogConfig, *, stream: TextIO | None = None, worker: int | None = None
) -> None:
    """Send qproxy's events to standard error as the configuration says.

    May be called again, on a reload: the last call counts. Each process calls it for itself,
    for a thread does not outlive a fork. Libraries' own records pass from
    level warning on; below that they may quote what they carry.

    Args:
        config: Format and least level.
        stream: Where lines go instead of standard error.
        worker: Number of this process among several workers; on every line, then.
    """
    level = _LEVELS[config.level]
    formatter = JsonFormatter if config.format is LogFormat.JSON else TextFormatter
    handler = StreamWriter(sys.stderr if stream is None else stream)
    everywhere: dict[str, _Plain] = {} if worker is None else {"worker": worker}
    handler.setFormatter(
        formatter(with_traceback=config.level is LogLevel.DEBUG, everywhere=everywhere)
    )
    root = logging.getLogger()
    for old in [old for old in root.handlers if isinstance(old, StreamWriter)]:
        root.removeHandler(old)
        old.close()
    root.addHandler(handler)
    root.setLevel(max(level, logging.WARNING))
    logging.getLogger(_ROOT).setLevel(level)


def close_logging() -> None:
    """Write what is still queued (for at most CLOSE_TIMEOUT_S) and stop logging."""
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, StreamWriter)]:
        root.removeHandler(handler)
        handler.close()


class StreamWriter(logging.Handler):
    """Formats at once, writes from a thread, and drops rather than waits.

    Attributes:
        dropped: Lines dropped because the stream did not take them, and not yet told of.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self.dropped = 0
        self._stream = stream
        self._queue: queue.Queue[str | None] = queue.Queue(MAX_QUEUED_LINES)
        self._closing = threading.Event()
        # A daemon: a stream that never takes another line must not keep the program alive.
        self._thread = threading.Thread(target=self._write, name="qproxy-log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Queue one line. Never waits and never raises."""
        try:
            line = self.format(record)
        except Exception as error:
            # A log call must not end a tunnel. Only the type is told: the text may be anything.
            line = f"log_failed error={type(error).__name__}"
        try:
            self._queue.put_nowait(line)
        except queue.Full:
            self.dropped += 1

    def close(self) -> None:
        """Write what is queued, for at most CLOSE_TIMEOUT_S, and end the thread."""
        if not self._closing.is_set():
            self._closing.set()
            try:
                self._queue.put(None, timeout=CLOSE_TIMEOUT_S)
                self._thread.join(CLOSE_TIMEOUT_S)
            except queue.Full:
                pass  # the stream is stuck; there is nobody to tell
        super().close()

    def _write(self) -> None:
        while (line := self._queue.get()) is not None:
            lines = line + "\n"
            self.acquire()  # `emit` runs under the same lock
            dropped, self.dropped = self.dropped, 0
            self.release()
            if dropped:
                lines += self._dropped_line(dropped) + "\n"
            try:
                self._stream.write(lines)
                self._stream.flush()
            except (OSError, ValueError):
                # Standard error is closed. There is nowhere left to say so.
                self.dropped += 1

    def _dropped_line(self, count: int) -> str:
        record = logging.LogRecord(
            _ROOT, logging.WARNING, __file__, 0, "log_lines_dropped", None, None
        )
        record.fields = {"count": count}
        return self.format(record)


class _EventFormatter(logging.Formatter):
    """What both formats share: which facts a record has, as plain values."""

    def __init__(
        self, *, with_traceback: bool = False, everywhere: Mapping[str, _Plain] | None = None
    ) -> None:
        super().__init__()
        self._with_traceback = with_traceback
        self._everywhere = everywhere or {}

    def facts(self, record: logging.LogRecord) -> tuple[str, str, str, dict[str, _Plain]]:
        """Time, level, event and fields of a record, of ours or of a library's."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        raw: Mapping[str, object] | None = getattr(record, "fields", None)
        fields: dict[str, _Plain]
        if raw is None:
            event = "library_message"
            fields = {"library": _plain(record.name), "text": _plain(record.getMessage())}
        else:
            event = _name(record.getMessage())
            fields = _plain_fields(raw)
        if self._with_traceback and record.exc_info and record.exc_info[1] is not None:
            text = traceback_text(record.exc_info[1])
            fields["traceback"] = _bounded(text, MAX_TRACEBACK_CHARS)
        fields = {**self._everywhere, **fields}
        return time.replace("+00:00", "Z"), record.levelname.lower(), event, fields


class TextFormatter(_EventFormatter):
    """`TIME LEVEL EVENT KEY=VALUE ...`, for people and grep."""

    def format(self, record: logging.LogRecord) -> str:
        """One line without its newline, in printable ASCII."""
        time, level, event, fields = self.facts(record)
        pairs = [f"{name}={_text_value(value)}" for name, value in fields.items()]
        return " ".join([time, level, event, *pairs])


class JsonFormatter(_EventFormatter):
    """One JSON object per line, for machines."""

    def format(self, record: logging.LogRecord) -> str:
        """One line without its newline, in printable ASCII."""
        time, level, event, fields = self.facts(record)
        head = {"time": time, "level": level, "event": event, "logger": _name(record.name)}
        # DEL is the one control character that JSON leaves as it is.
        return json.dumps({**head, **fields}, allow_nan=False).replace("\x7f", "\\u007f")


def escape(text: str, limit: int = MAX_FIELD_CHARS, *, backslashes: bool = True) -> str:
    """Text that somebody else chose, as printable ASCII of a bounded length.

    Control characters, escapes, bidirectional marks and everything else outside printable
    ASCII become `\\n`, `\\x1b` or `\\u202e`, so that the result can be shown on a terminal and
    stands on one line.

    Args:
        text: What to show.
        limit: Most characters of it that are kept.
        backslashes: Whether to double a backslash, so that no two texts look the same. Off
            for a message whose parts are escaped already.
    """
    bounded = _bounded(text, limit)
    doubled = bounded.replace("\\", "\\\\") if backslashes else bounded
    return _NOT_PLAIN.sub(_escape_character, doubled)


def _escape_character(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode("ascii")


def _bounded(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[:limit]}...(+{len(text) - limit})"


def _name(name: str) -> str:
    return _NOT_NAME.sub("_", _bounded(name, 128)) or "_"


def _plain_fields(fields: Mapping[str, object]) -> dict[str, _Plain]:
    plain = _plain_mapping(fields, 0)
    return {f"field_{name}" if name in _RESERVED else name: plain[name] for name in plain}


def _plain(value: object, depth: int = 0) -> _Plain:
    """A value as JSON types, secrets redacted and unknown types named only."""
    match value:
        case None | bool():
            return value
        case enum.Enum():
            return _plain(value.value, depth)
        case int():
            bits = value.bit_length()
            return value if bits <= MAX_INTEGER_BITS else f"<redacted integer of {bits} bits>"
        case float():
            return value if math.isfinite(value) else str(value)
        case str():
            return _bounded(value, MAX_FIELD_CHARS)
        case bytes() | bytearray():
            return f"<redacted {len(value)} bytes>"
        case memoryview():
            return f"<redacted {value.nbytes} bytes>"
        case QkdKey():
            return f"<redacted {len(value.key)} bytes>"
        case PurePath() | TcpAddress() | UnixAddress() | uuid.UUID():
            return _bounded(str(value), MAX_FIELD_CHARS)
        case ipaddress.IPv4Address() | ipaddress.IPv6Address():
            return str(value)
        case BaseException():
            return _plain_error(value)
        case Mapping():
            too_deep = depth == MAX_FIELD_DEPTH
            return f"<{len(value)} items>" if too_deep else _plain_mapping(value, depth)
        case list() | tuple() | set() | frozenset():
            return _plain_items(value, len(value), depth)
        case _:
            return f"<{type(value).__name__}>"


def _plain_error(error: BaseException) -> str:
    """The type of an error; its text too where the text is known to quote nothing secret."""
    name = type(error).__name__
    if isinstance(error, QproxyError | OSError):
        return _bounded(f"{name}: {error}", MAX_FIELD_CHARS)
    return name


def traceback_text(error: BaseException) -> str:
    """Frames and error types, outermost cause last; never the values of any variable."""
    parts: list[str] = []
    pending: list[BaseException] = [error]
    seen: set[int] = set()
    while pending and len(seen) < MAX_FIELDS:
        current = pending.pop()
        if id(current) in seen:
            continue
        seen.add(id(current))
        parts += [*traceback.format_tb(current.__traceback__), f"{_plain_error(current)}\n"]
        if isinstance(current, BaseExceptionGroup):
            pending += current.exceptions
        pending += [link for link in (current.__context__, current.__cause__) if link is not None]
    return "".join(parts)


def _plain_items(items: Iterable[object], count: int, depth: int) -> _Plain:
    if depth == MAX_FIELD_DEPTH:
        return f"<{count} items>"
    plain = [_plain(item, depth + 1) for item, _ in zip(items, range(MAX_FIELDS), strict=False)]
    if count > MAX_FIELDS:
        plain.append(f"...(+{count - MAX_FIELDS})")
    return plain


def _plain_mapping(
    mapping: Mapping[object, object] | Mapping[str, object], depth: int
) -> dict[str, _Plain]:
    plain: dict[str, _Plain] = {}
    for number, (key, value) in enumerate(mapping.items()):
        if number == MAX_FIELDS:
            plain["fields_dropped"] = len(mapping) - MAX_FIELDS
            break
        plain[_name(key if isinstance(key, str) else type(key).__name__)] = _plain(value, depth + 1)
    return plain


def _text_value(value: _Plain) -> str:
    if isinstance(value, str):
        # Quoted unless it could be nothing else than this one value.
        return (
            value
            if _BARE.match(value)
            else '"' + escape(value, sys.maxsize).replace('"', '\\"') + '"'
        )
    text = json.dumps(value, allow_nan=False).replace("\x7f", "\\u007f").replace("'", "\\u0027")
    return text if isinstance(value, bool | int | float | None) else f"'{text}'"

"""Kinds of single values: words, numbers, sizes, addresses, paths.

Each reads the text as it is written, so that `off` is the word off and `0x1F` no number.
"""

from __future__ import annotations

import enum
import os
import re
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import yaml

from qproxy.address import Address, TcpAddress, UnixAddress, parse_address
from qproxy.config.document import line_of, shown
from qproxy.config.walk import (
    INVALID,
    KeyPath,
    Mismatch,
    Walk,
    did_you_mean,
    is_core_tag,
    is_null,
    kind_of,
)
from qproxy.errors import ConfigError

#: Most of a pre-shared key file that is looked at; 64 digits and a newline are 65 bytes.
MAX_PSK_FILE_BYTES: Final = 256

_DIGITS: Final = re.compile(r"-?[0-9][0-9_]{0,17}\Z")
_DECIMAL: Final = re.compile(r"-?[0-9]{1,12}(\.[0-9]{1,9})?\Z")
_SIZE: Final = re.compile(r"([0-9]{1,18}) ?([A-Za-z]*)\Z")
_UNITS: Final = {"": 1, "B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


class Scalar:
    """A kind written as one word, number or text; subclasses turn the text into a value."""

    #: Whether quotes around the value make it something else.
    bare = True
    #: Whether the value itself must never be shown.
    secret = False

    def __init__(self, expected: str) -> None:
        self.expected = expected

    def parse(self, text: str, walk: Walk) -> Any:
        """The value that the text stands for.

        Raises:
            Mismatch: It stands for none.
        """
        raise NotImplementedError

    def read(self, walk: Walk, node: yaml.Node, path: KeyPath) -> Any:
        """The value, or INVALID after a report."""
        try:
            return self.parse(self._text(node), walk)
        except Mismatch as mismatch:
            value = getattr(node, "value", "")
            text = (
                "another value" if self.secret else shown(value if isinstance(value, str) else "")
            )
            got = text if mismatch.got is None else mismatch.got
            walk.report(
                path, f"expected {self.expected}, got {got}", mismatch.hint, line=line_of(node)
            )
            return INVALID

    def _text(self, node: yaml.Node) -> str:
        if not isinstance(node, yaml.ScalarNode):
            raise Mismatch(kind_of(node))
        if not is_core_tag(node):
            raise Mismatch("a value with a YAML tag", "remove the '!' tag")
        if self.bare and node.style is not None:
            raise Mismatch("a text", "remove the quotes")
        if is_null(node):
            raise Mismatch("nothing")
        return str(node.value)


class Text(Scalar):
    """Text of printable characters that matches a pattern as a whole."""

    bare = False

    def __init__(self, expected: str, pattern: str) -> None:
        super().__init__(expected)
        self.pattern = pattern

    def parse(self, text: str, walk: Walk) -> str:
        """The text itself."""
        if not re.fullmatch(self.pattern, text):
            raise Mismatch
        return text


class Reference(Text):
    """The name of something in another mapping; whether it is there is seen at the end."""

    def __init__(self, to: KeyPath, name: Text) -> None:
        super().__init__(f"a name from {'.'.join(to)}", name.pattern)
        self._to = to

    def read(self, walk: Walk, node: yaml.Node, path: KeyPath) -> Any:
        """The name, after a note of where it should lead."""
        name = super().read(walk, node, path)
        if name is not INVALID:
            walk.lines.setdefault(path, line_of(node))
            walk.references.append((path, self._to, name))
        return name


class Word(Scalar):
    """One of a closed set of words.

    Args:
        words: the set.
        refused: members that make no sense here, each with what to say about it.
    """

    bare = False

    def __init__(
        self, words: type[enum.StrEnum], *, refused: Mapping[enum.StrEnum, str] | None = None
    ) -> None:
        self._refused = refused or {}
        self._known = [word.value for word in words if word not in self._refused]
        super().__init__("one of " + ", ".join(self._known))
        self._words = words

    def parse(self, text: str, walk: Walk) -> enum.StrEnum:
        """The member the word names. `off` and `on` are words here, as they are written."""
        try:
            word = self._words(text)
        except ValueError:
            raise Mismatch(hint=did_you_mean(text, self._known)) from None
        if word in self._refused:
            raise Mismatch(hint=self._refused[word])
        return word


class Flag(Scalar):
    """A boolean."""

    def __init__(self) -> None:
        super().__init__("true or false")

    def parse(self, text: str, walk: Walk) -> bool:
        """True or False; YAML 1.1's other spellings are refused, for they read like words."""
        if text.lower() in {"true", "false"}:
            return text.lower() == "true"
        other = {"yes": "true", "on": "true", "no": "false", "off": "false"}.get(text.lower())
        raise Mismatch(hint=f"write {other}" if other else None)


class Integer(Scalar):
    """A whole number in a range, both ends included."""

    def __init__(self, minimum: int, maximum: int, *, multiple_of: int = 1) -> None:
        step = f", a multiple of {multiple_of}" if multiple_of > 1 else ""
        super().__init__(f"a whole number from {minimum} to {maximum}{step}")
        self._minimum, self._maximum, self._step = minimum, maximum, multiple_of

    def parse(self, text: str, walk: Walk) -> int:
        """The number; digits may be grouped with `_`."""
        if not _DIGITS.match(text):
            raise Mismatch
        value = int(text.replace("_", ""))
        if not self._minimum <= value <= self._maximum or value % self._step:
            raise Mismatch
        return value


class WorkerCount(Integer):
    """How many workers; 0 stands for `auto`."""

    def __init__(self, maximum: int) -> None:
        super().__init__(1, maximum)
        self.expected = f"auto, or {self.expected}"

    def parse(self, text: str, walk: Walk) -> int:
        """The number, or 0."""
        return 0 if text == "auto" else super().parse(text, walk)


class Number(Scalar):
    """A number in a range, both ends included; 0 also where it means never."""

    def __init__(self, minimum: float, maximum: float, unit: str, *, never: bool = False) -> None:
        zero = " (0 = never)" if never else ""
        noun = f"a number of {unit}" if unit else "a number"
        super().__init__(f"{noun} from {minimum:g} to {maximum:g}{zero}")
        self._minimum, self._maximum, self._never = minimum, maximum, never

    def parse(self, text: str, walk: Walk) -> float:
        """The number as a float."""
        if not _DECIMAL.match(text):
            unit = re.fullmatch(r"[0-9.]+ ?[a-z]+", text)
            raise Mismatch(hint="write the number alone, without a unit" if unit else None)
        value = float(text)
        if not (self._minimum <= value <= self._maximum or (self._never and value == 0)):
            raise Mismatch
        return value


class ByteSize(Scalar):
    """A number of bytes, plain or with a binary unit."""

    bare = False

    def __init__(self, minimum: int, maximum: int) -> None:
        low, high = format_size(minimum), format_size(maximum)
        super().__init__(f"a number of bytes from {low} to {high}")
        self._minimum, self._maximum = minimum, maximum

    def parse(self, text: str, walk: Walk) -> int:
        """The number of bytes."""
        match = _SIZE.match(text.replace("_", ""))
        if match is None:
            raise Mismatch(hint="write a whole number of bytes, or one with a unit, like 64MiB")
        number, unit = match.groups()
        if unit not in _UNITS:
            raise Mismatch(hint="known units are KiB, MiB, GiB and TiB (powers of 1024)")
        value = int(number) * _UNITS[unit]
        if not self._minimum <= value <= self._maximum:
            raise Mismatch
        return value


class Endpoint(Scalar):
    """An address to listen on or to connect to."""

    bare = False

    def __init__(self, *, listen: bool, loopback_only: bool = False) -> None:
        where = "a loopback address" if loopback_only else "an address"
        super().__init__(f"{where} 'HOST:PORT', '[IPV6]:PORT' or 'unix:/PATH'")
        self._listen, self._loopback_only = listen, loopback_only

    def parse(self, text: str, walk: Walk) -> Address:
        """The address; the path of a unix socket starts at the file's directory."""
        try:
            address = parse_address(text)
            if isinstance(address, UnixAddress):
                address = parse_address(f"unix:{walk.base / address.path}")
        except ValueError as error:
            raise Mismatch(hint=str(error).rpartition(": ")[2]) from None
        if self._loopback_only and not address.is_loopback:
            raise Mismatch(hint="use 127.0.0.1, [::1] or unix:/PATH")
        if isinstance(address, TcpAddress) and address.port == 0 and not self._listen:
            raise Mismatch(hint="port 0 only means something for a listener")
        return address


class ReadableFile(Scalar):
    """The path of a file that exists and can be read."""

    bare = False

    def __init__(self, what: str, *, secret: bool = False) -> None:
        super().__init__(f"the path of {what}")
        self.secret = secret

    def parse(self, text: str, walk: Walk) -> Path:
        """The absolute path."""
        return _existing(walk.base / text, text, stat.S_ISREG, "a file", self.secret)


class NewFile(Scalar):
    """The path of a file that the program writes, in a directory that exists."""

    bare = False

    def __init__(self, what: str) -> None:
        super().__init__(f"the path of {what}")

    def parse(self, text: str, walk: Walk) -> Path:
        """The absolute path."""
        path = walk.base / text
        _existing(path.parent, str(path.parent), stat.S_ISDIR, "a directory", secret=False)
        if path.is_dir():
            raise Mismatch(f"{shown(str(path))}, which is a directory")
        return path


class PskFile(ReadableFile):
    """A file of exactly 64 hexadecimal digits; its content stays in the file."""

    def __init__(self) -> None:
        super().__init__("a file of 64 hexadecimal digits (32 bytes)", secret=True)

    def parse(self, text: str, walk: Walk) -> Path:
        """The absolute path, after a look at what the file holds."""
        path = super().parse(text, walk)
        try:
            load_psk(path)[:] = bytes(32)
        except ConfigError as error:
            raise Mismatch(error.message.partition(", got ")[2], error.hint) from None
        return path


class Directory(Scalar):
    """The path of a directory that exists and can be listed."""

    bare = False

    def __init__(self, what: str) -> None:
        super().__init__(f"the path of {what}")

    def parse(self, text: str, walk: Walk) -> Path:
        """The absolute path."""
        return _existing(walk.base / text, text, stat.S_ISDIR, "a directory", secret=False)


class FilePath(Scalar):
    """The path of a file that the program will make and write."""

    bare = False

    def __init__(self, expected: str) -> None:
        super().__init__(expected)

    def parse(self, text: str, walk: Walk) -> Path:
        """The absolute path. What is there is looked at when it is opened."""
        if "\0" in text or not text.isprintable():
            raise Mismatch("a path with a control character in it")
        path = walk.base / text
        if text.endswith("/") or path.name in {"", ".."}:
            raise Mismatch(hint="give the path of a file, not of its directory")
        return path


class HttpsUrl(Scalar):
    """The base URL of a server reached over TLS."""

    bare = False
    # A URL is where people put user names and passwords.
    secret = True

    def __init__(self) -> None:
        super().__init__("a URL 'https://HOST[:PORT][/PATH]'")

    def parse(self, text: str, walk: Walk) -> str:
        """The URL without a trailing slash."""
        if not re.fullmatch(r"[!-~]{1,2000}", text):
            raise Mismatch("a text with blanks or characters outside ASCII")
        try:
            parts = urlsplit(text)
            port = parts.port
        except ValueError:
            raise Mismatch("a port or host that is none") from None
        if parts.scheme != "https":
            raise Mismatch(f"the scheme {shown(parts.scheme)}", "QKD keys only travel over TLS")
        if "@" in parts.netloc or parts.query or parts.fragment or "?" in text or "#" in text:
            raise Mismatch("a user, query or fragment in it", "certificates say who we are")
        try:
            host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
            parse_address(f"{host or ''}:{443 if port is None else port}")
        except ValueError:
            raise Mismatch("a host that is none") from None
        return text.rstrip("/")


def format_size(size: int) -> str:
    """A number of bytes in the largest unit that divides it."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if size >= _UNITS[unit] and size % _UNITS[unit] == 0:
            return f"{size // _UNITS[unit]}{unit}"
    return str(size)


def load_psk(path: Path) -> bytearray:
    """The 32 bytes of a pre-shared key file.

    The caller owns the secret and overwrites it after use.

    Raises:
        ConfigError: The file cannot be read, or is not 64 hexadecimal digits and a newline.
    """
    expected = "expected a file of 64 hexadecimal digits (32 bytes)"
    hint = "openssl rand -hex 32 makes one"
    data = bytearray(MAX_PSK_FILE_BYTES)
    try:
        with path.open("rb", buffering=0) as file:
            length = file.readinto(data)
    except OSError as error:
        got = error.strerror or type(error).__name__
        raise ConfigError(f"{expected}, got {got}", file=path, hint=hint) from None
    try:
        match = re.fullmatch(rb"\s*([0-9A-Fa-f]{64})\s*\0*", data)
        # A full buffer means that there may be more of the file.
        if match is None or length == MAX_PSK_FILE_BYTES:
            got = f"{length} bytes that are something else"
            raise ConfigError(f"{expected}, got {got}", file=path, hint=hint)
        start = match.start(1)
        psk = bytearray(int(data[i : i + 2], 16) for i in range(start, start + 64, 2))
        if not any(psk):
            got = "only zeros, which is the same as no key"
            raise ConfigError(f"{expected}, got {got}", file=path, hint=hint)
        return psk
    finally:
        data[:] = bytes(len(data))


def _existing(
    path: Path, written: str, is_right: Callable[[int], bool], what: str, secret: bool
) -> Path:
    """The path, if something of the right sort is there and we may read it."""
    if "\0" in written:
        raise Mismatch("a path with a NUL in it")
    name = "that path" if secret else shown(str(path))
    try:
        mode = path.stat().st_mode
    except OSError as error:
        hint = "give the path of the file, not what is in it" if secret else None
        raise Mismatch(f"{name}: {error.strerror or type(error).__name__}", hint) from None
    if not is_right(mode):
        raise Mismatch(f"{name}, which is not {what}")
    if not os.access(path, os.R_OK):
        raise Mismatch(f"{name}, which this user may not read")
    return path

"""YAML from anybody: a tree, or a ConfigError with a line; never a hang or a crash."""

import contextlib

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from qproxy.config import document
from qproxy.config.document import read_document, shown
from qproxy.errors import ConfigError


def read(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_document(path)


BOMB = "a: &a [x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join(['*' + chr(97 + n)] * 9)}]\n" for n in range(9)
)


@pytest.mark.parametrize(
    ("text", "message", "line"),
    [
        ("", "got an empty file", None),
        ("# nothing\n", "got an empty file", None),
        (BOMB, "aliases expanded", 6),
        ("a: &a x\nb: [" + "*a, " * 300 + "]\n", "at most 256 aliases", 2),
        ("a: &a\n  b: *a\n", "one inside itself", 2),
        ("[" * 100 + "]" * 100, "at most 16 levels", 1),
        ("a: [" + "x, " * 60_000 + "]", "at most 50000 values", 1),
        ("a: " + "x" * 5000, "at most 4096 characters", 1),
        ("a: b: c\n", "mapping values are not allowed", 1),
        ("a:\n\tb: c\n", "cannot start any token", 2),
        ("a: *nobody\n", "undefined alias", 1),
        ("a: 1\nb: 2\n---\nc: 3\n", "expected a single document in the stream but", 3),
        ("a: 1\nb: \x01\n", "control character", 2),
        (b"a: 1\nb: \xff\n", "expected UTF-8", 2),
        ("a: 1\n", None, None),
        ("\ufeffa: 1\n", None, None),
    ],
)
def test_hostile_and_broken_files(tmp_path, text, message, line):
    if message is None:
        assert isinstance(read(tmp_path, text), yaml.MappingNode)
        return
    with pytest.raises(ConfigError, match=message) as caught:
        read(tmp_path, text)
    assert caught.value.line == line
    assert caught.value.file == tmp_path / "config.yaml"


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    with pytest.raises(ConfigError, match="at most 1048576 bytes"):
        read(tmp_path, b"#" * (document.MAX_FILE_BYTES + 1))


@pytest.mark.parametrize("name", ["missing.yaml", "."])
def test_a_file_that_is_none(tmp_path, name):
    with pytest.raises(ConfigError, match="expected a file that can be read"):
        read_document(tmp_path / name)


def test_tabs_get_a_hint(tmp_path):
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, "a:\n\tb: 1\n")
    assert "spaces" in caught.value.hint


@given(st.one_of(st.binary(max_size=200), st.text("-:[]{}&*!|>'\"%@`#,?\t\n ab01<", max_size=200)))
def test_any_bytes_are_a_tree_or_a_config_error(tmp_path_factory, data):
    # Anything else that escapes fails the test.
    with contextlib.suppress(ConfigError):
        assert isinstance(read(tmp_path_factory.getbasetemp(), data), yaml.Node)


@pytest.mark.parametrize(
    "secret",
    [
        "0123456789abcdef" * 4,
        "-----BEGIN PRIVATE KEY-----",
        "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=",
    ],
)
def test_what_looks_like_a_secret_is_not_shown(secret):
    assert secret not in shown(secret)
    assert secret not in shown(f"x {secret} y")


def test_what_is_shown_is_bounded_and_printable():
    assert shown("plain") == "'plain'"
    assert shown("a\n\x1b") == "'a\\n\\x1b'"
    assert len(shown("xyz " * 1000)) < 120

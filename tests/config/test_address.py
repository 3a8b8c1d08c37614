"""Addresses: what is one, what is none, and which of them leave the machine."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qproxy.address import (
    MAX_UNIX_PATH_BYTES,
    TcpAddress,
    UnixAddress,
    parse_address,
)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:80", TcpAddress("127.0.0.1", 80)),
        ("[::1]:7443", TcpAddress("::1", 7443)),
        ("[2001:DB8:0::1]:1", TcpAddress("2001:db8::1", 1)),
        ("db.example:65535", TcpAddress("db.example", 65535)),
        ("_srv.example.:0", TcpAddress("_srv.example.", 0)),
        ("unix:/run/x.sock", UnixAddress("/run/x.sock")),
        ("unix:x:1", UnixAddress("x:1")),
    ],
)
def test_forms(text, address):
    assert parse_address(text) == address
    assert parse_address(str(address)) == address


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "port is missing"),
        ("127.0.0.1", "port is missing"),
        ("127.0.0.1:", "port must be a number"),
        ("127.0.0.1:65536", "port must be a number"),
        ("127.0.0.1:-1", "port must be a number"),
        ("127.0.0.1:٣", "port must be a number"),
        ("127.0.0.1:8_0", "port must be a number"),
        (":80", "host is missing"),
        ("::1:80", "in brackets"),
        ("[::1:80", "do not match"),
        ("::1]:80", "do not match"),
        ("[127.0.0.1]:80", "no IPv6 address"),
        ("256.0.0.1:80", "not an IPv4 address"),
        ("1.2.3:80", "not an IPv4 address"),
        ("a b:80", "neither an address nor a host name"),
        ("-a.example:80", "neither an address nor a host name"),
        ("a..b:80", "neither an address nor a host name"),
        ("http://x:80", "in brackets"),
        ("a" * 64 + ":80", "neither an address nor a host name"),
        ("a." * 127 + "a:80", "at most 253 characters"),
        ("unix:", "path is missing"),
        ("unix:/a\0b", "NUL"),
        ("unix:/" + "x" * MAX_UNIX_PATH_BYTES, "at most 107 bytes, got 108"),
    ],
)
def test_what_is_no_address_says_why(text, message):
    with pytest.raises(ValueError, match=message):
        parse_address(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:1", True),
        ("127.255.0.1:1", True),
        ("[::1]:1", True),
        ("localhost:1", True),
        ("unix:/x", True),
        ("0.0.0.0:1", False),
        ("[::]:1", False),
        ("10.0.0.1:1", False),
        ("localhost.example:1", False),
        ("127.example:1", False),
    ],
)
def test_loopback(text, expected):
    assert parse_address(text).is_loopback is expected


@given(st.text(max_size=300))
def test_any_text_is_an_address_that_reads_back_or_a_value_error(text):
    try:
        address = parse_address(text)
    except ValueError:
        return
    assert parse_address(str(address)) == address

"""Whom a certificate speaks for."""

from __future__ import annotations

import hashlib

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from qproxy.errors import Reason, RemoteProtocolError
from qproxy.tls.names import certificate_hash, certificate_names, check_server_name
from tests import pki

CA = pki.authority()
NAMES = ("gw-a", "*.wild.test", "10.0.0.1", "::1", "urn:qproxy:gw-a", "https://x/y")


def test_names_are_all_alternative_names_and_never_the_cn():
    certificate = pki.identity(CA, *NAMES, common_name="the-cn").certificate
    assert certificate_names(certificate) == frozenset(NAMES)


def test_no_extension_no_names():
    assert certificate_names(pki.identity(CA, common_name="gw-a").certificate) == frozenset()


def test_hash_is_sha384_of_the_der():
    certificate = pki.identity(CA, "gw-a").certificate
    expected = hashlib.sha384(certificate.public_bytes(Encoding.DER)).digest()
    assert certificate_hash(certificate) == expected


@pytest.mark.parametrize("name", ["gw-a", "GW-A", "a.wild.test", "10.0.0.1", "::1", "0:0::1"])
def test_server_name_matches(name):
    check_server_name(pki.identity(CA, *NAMES).certificate, name)


@pytest.mark.parametrize(
    "name",
    [
        "gw-b",
        "the-cn",
        "wild.test",
        "a.b.wild.test",
        "10.0.0.2",
        "::2",
        "urn:qproxy:gw-a",
        "",
        "x" * 300,
        "not a name",
        "gw-a\0.test",
    ],
)
def test_server_name_does_not_match(name):
    certificate = pki.identity(CA, *NAMES, common_name="the-cn").certificate
    with pytest.raises(RemoteProtocolError) as caught:
        check_server_name(certificate, name)
    assert caught.value.reason is Reason.PEER_NAME_MISMATCH


def test_a_wildcard_that_is_not_allowed_matches_nothing_and_spoils_nothing():
    certificate = pki.identity(CA, "*", "a.*.test", "gw-a").certificate
    check_server_name(certificate, "gw-a")
    for name in ("x", "a.b.test"):
        with pytest.raises(RemoteProtocolError):
            check_server_name(certificate, name)


def test_server_name_without_alternative_names():
    with pytest.raises(RemoteProtocolError) as caught:
        check_server_name(pki.identity(CA, common_name="gw-a").certificate, "gw-a")
    assert caught.value.reason is Reason.PEER_NAME_MISMATCH

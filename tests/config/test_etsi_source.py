"""Key sources over ETSI GS QKD 014: one KME or several, PEM or PKCS #12, and what is asked."""

from __future__ import annotations

import pytest

from qproxy.config.model import (
    Etsi014SourceConfig,
    KeyRequestMethod,
    PemFiles,
    Pkcs12Files,
    SkipSourceConfig,
    SourceEndpoint,
)
from qproxy.config.reader import ConfigFileError, load_gateway_config

HEAD = """\
node: {name: gw-a}
identity: {certificate: a.pem, private_key: a.key, ca: ca.pem}
peers: {gw-b: {address: '127.0.0.1:7444', key_source: kme}}
key_sources:
  kme:
"""
PEM = "certificate: a.pem, private_key: a.key"
URL = "url: 'https://kme:8441'"


@pytest.fixture
def room(tmp_path):
    for name in ("a.pem", "a.key", "ca.pem", "b.pem", "b.key", "ca-b.pem", "a.p12", "b.p12", "pw"):
        (tmp_path / name).write_text("")
    return tmp_path


@pytest.fixture
def load(room):
    def read(body, kind="etsi-qkd-014"):
        (room / "config.yaml").write_text(f"{HEAD}    {{type: {kind}, {body}}}\n")
        return load_gateway_config(room / "config.yaml").key_sources["kme"]

    return read


@pytest.fixture
def faults(load):
    def read(body, kind="etsi-qkd-014"):
        with pytest.raises(ConfigFileError) as caught:
            load(body, kind)
        return [(fault.key or "").removeprefix("key_sources.kme.") for fault in caught.value.errors]

    return read


def test_one_kme_with_pem_files(load, room):
    source = load(f"{URL}, ca: ca.pem, {PEM}, server_name: kme-a")
    assert source.endpoints == (
        SourceEndpoint(
            name="kme",
            url="https://kme:8441",
            ca=room / "ca.pem",
            client=PemFiles(room / "a.pem", room / "a.key"),
            server_name="kme-a",
        ),
    )
    assert source.endpoints[0].files == {room / "ca.pem", room / "a.pem", room / "a.key"}


@pytest.mark.parametrize("kind", ["etsi-qkd-014", "skip"])
@pytest.mark.parametrize("password", [None, "pw"])
def test_one_kme_with_pkcs12(load, room, kind, password):
    more = "" if password is None else f", pkcs12_password_file: {password}"
    (endpoint,) = load(f"{URL}, ca: ca.pem, pkcs12: a.p12{more}", kind).endpoints
    file = None if password is None else room / password
    assert endpoint.client == Pkcs12Files(room / "a.p12", file)
    assert endpoint.files == {room / "ca.pem", room / "a.p12", file or room / "a.p12"}


def test_several_kmes_take_what_they_do_not_say_from_the_source(load, room):
    source = load(
        f"ca: ca.pem, {PEM}, kmes: {{"
        "south: {url: 'https://south', server_name: s},"
        "north: {url: 'https://north', ca: ca-b.pem, pkcs12: b.p12, pkcs12_password_file: pw},"
        "east: {url: 'https://east', certificate: b.pem, private_key: b.key}}"
    )
    south, north, east = source.endpoints
    assert [endpoint.name for endpoint in source.endpoints] == ["south", "north", "east"]
    assert (south.ca, south.client) == (
        room / "ca.pem",
        PemFiles(room / "a.pem", room / "a.key"),
    )
    assert (south.server_name, north.server_name) == ("s", None)
    assert (north.ca, north.client) == (
        room / "ca-b.pem",
        Pkcs12Files(room / "b.p12", room / "pw"),
    )
    assert east.client == PemFiles(room / "b.pem", room / "b.key")


def test_what_every_kme_gives_for_itself_need_not_be_given_for_all(load):
    own = "url: 'https://north', ca: ca.pem, pkcs12: a.p12"
    assert len(load(f"kmes: {{north: {{{own}}}}}").endpoints) == 1


def test_every_other_value_arrives(load):
    source = load(
        f"{URL}, ca: ca.pem, {PEM}, method: post, additional_slave_sae_ids: [gw-c, gw-d],"
        "extension_mandatory: [{route: direct, 'count': 3}],"
        "extension_optional: [{a: [1, true, null, 0.5, '7', {b: c}]}],"
        "kme_retry_s: 0.5, max_kme_retry_s: 30"
    )
    assert isinstance(source, Etsi014SourceConfig)
    assert source.method is KeyRequestMethod.POST
    assert source.additional_slave_sae_ids == ("gw-c", "gw-d")
    assert source.extension_mandatory == ({"route": "direct", "count": 3},)
    assert source.extension_optional == ({"a": [1, True, None, 0.5, "7", {"b": "c"}]},)
    assert (source.kme_retry_s, source.max_kme_retry_s) == (0.5, 30)


def test_defaults(load):
    source = load(f"{URL}, ca: ca.pem, {PEM}")
    assert (source.method, source.kmes) == (KeyRequestMethod.AUTO, {})
    assert source.extension_mandatory is source.extension_optional is None
    assert source.additional_slave_sae_ids is None


@pytest.mark.parametrize(
    ("body", "keys"),
    [
        (f"ca: ca.pem, {PEM}", ["url"]),
        (f"{URL}, {PEM}", ["ca"]),
        (f"{URL}, ca: ca.pem", ["certificate"]),
        (f"{URL}, ca: ca.pem, certificate: a.pem", ["private_key"]),
        (f"{URL}, ca: ca.pem, private_key: a.key", ["certificate"]),
        (f"{URL}, ca: ca.pem, {PEM}, pkcs12: a.p12", ["certificate", "private_key"]),
        (f"{URL}, ca: ca.pem, {PEM}, pkcs12_password_file: pw", ["pkcs12"]),
        (f"{URL}, ca: ca.pem, pkcs12: none.p12", ["pkcs12"]),
        (f"{URL}, ca: ca.pem, pkcs12: a.p12, password: x", ["password"]),
        (f"ca: ca.pem, {PEM}, kmes: {{}}", ["kmes"]),
        (f"{URL}, ca: ca.pem, {PEM}, kmes: {{n: {{{URL}}}}}", ["url"]),
        (f"server_name: x, ca: ca.pem, {PEM}, kmes: {{n: {{{URL}}}}}", ["server_name"]),
        (f"ca: ca.pem, {PEM}, kmes: {{n: {{ca: ca.pem}}}}", ["kmes.n.url"]),
        (f"{PEM}, kmes: {{n: {{{URL}}}, m: {{{URL}, ca: ca.pem}}}}", ["kmes.n.ca"]),
        (f"ca: ca.pem, kmes: {{n: {{{URL}}}, m: {{{URL}, {PEM}}}}}", ["kmes.n.certificate"]),
        (f"ca: ca.pem, {PEM}, kmes: {{n: {{{URL}, private_key: b.key}}}}", ["kmes.n.certificate"]),
        (f"{URL}, ca: ca.pem, {PEM}, kme_retry_s: 5, max_kme_retry_s: 1", ["max_kme_retry_s"]),
        (f"{URL}, ca: ca.pem, {PEM}, method: put", ["method"]),
        (
            f"{URL}, ca: ca.pem, {PEM}, method: get, extension_optional: [{{a: 1}}]",
            ["extension_optional"],
        ),
        (
            f"{URL}, ca: ca.pem, {PEM}, method: get, additional_slave_sae_ids: [a]",
            ["additional_slave_sae_ids"],
        ),
        (f"{URL}, ca: ca.pem, {PEM}, additional_slave_sae_ids: [a, a]", None),
        (f"{URL}, ca: ca.pem, {PEM}, extension_mandatory: {{a: 1}}", ["extension_mandatory"]),
        (f"{URL}, ca: ca.pem, {PEM}, extension_mandatory: []", ["extension_mandatory"]),
        (f"{URL}, ca: ca.pem, {PEM}, extension_mandatory: [a]", ["extension_mandatory"]),
        (f"{URL}, ca: ca.pem, {PEM}, extension_mandatory: [{{}}]", ["extension_mandatory"]),
        (f"{URL}, ca: ca.pem, {PEM}, extension_mandatory: [{{a: 1, a: 2}}]", None),
        (f"{URL}, ca: ca.pem, {PEM}, extension_mandatory: [{{a: !x 1}}]", None),
        (f"{URL}, ca: ca.pem, {PEM}, extension_mandatory: [{{a: [[[[[1]]]]]}}]", None),
        (f"{URL}, ca: ca.pem, {PEM}, extension_mandatory: [{{a: {'x' * 1001}}}]", None),
        (f"{URL}, ca: ca.pem, {PEM}, extension_optional: [{{a: {list(range(65))}}}]", None),
    ],
)
def test_what_does_not_fit_is_told_by_its_key(faults, body, keys):
    found = faults(body)
    assert found if keys is None else found == keys


@pytest.mark.parametrize(
    ("body", "keys"),
    [
        (f"{URL}, ca: ca.pem", ["certificate"]),
        (f"{URL}, ca: ca.pem, {PEM}, pkcs12: a.p12", ["certificate", "private_key"]),
    ],
)
def test_a_skip_provider_is_shown_one_certificate(faults, load, body, keys):
    assert faults(body, "skip") == keys
    assert isinstance(load(f"{URL}, ca: ca.pem, {PEM}", "skip"), SkipSourceConfig)


def test_a_password_in_the_configuration_is_not_repeated_in_the_fault(load):
    with pytest.raises(ConfigFileError) as caught:
        load(f"{URL}, ca: ca.pem, pkcs12: a.p12, pkcs12_password_file: correct-horse-battery")
    (fault,) = caught.value.errors
    assert "correct-horse" not in f"{fault} {fault.hint}"

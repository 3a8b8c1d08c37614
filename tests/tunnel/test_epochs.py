"""Epochs between ends that want different things, and peers that may not come in at all."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from OpenSSL import SSL, crypto

from qproxy.crypto import labels
from qproxy.errors import LocalProtocolError, Reason, RemoteProtocolError
from qproxy.modes import Aead, ClientAuth, KemAlgorithm, Mode, Policy, stricter
from qproxy.tls.context import client_context, server_context
from qproxy.tls.identity import TlsIdentity, TrustStore
from qproxy.tls.names import certificate_hash
from qproxy.tunnel.events import (
    EpochCommitted,
    EpochDue,
    EpochFailed,
    HandshakeCompleted,
    KeysNeeded,
    PolicyAgreed,
    TunnelClosed,
    TunnelEstablished,
)
from qproxy.tunnel.messages import Accept, Offer, decode_epoch_message
from qproxy.tunnel.settings import Role
from qproxy.tunnel.tls_phase import AuthenticatedPeer
from tests import pki
from tests.tunnel.adversary import intercept, other, split_records
from tests.tunnel.helpers import (
    CLIENT,
    SERVER,
    Pair,
    established,
    make_pair,
    qkd_keys,
    replace,
    with_policy,
)
from tests.tunnel.rules import BOTH, MODES, fails, keys_for

POLICIES = list(itertools.product(Policy, Policy))


def started(client: Any, server: Any) -> Pair:
    pair = make_pair(client, server)
    pair.pump()
    return pair


# --- policies --------------------------------------------------------------------------------


@pytest.mark.parametrize(("mine", "theirs"), POLICIES)
def test_a_hybrid_epoch_suits_every_policy_and_the_stricter_one_holds(
    mine: Policy, theirs: Policy
) -> None:
    pair = established(with_policy(CLIENT, mine), with_policy(SERVER, theirs))
    for role in BOTH:
        assert pair.last(role, EpochCommitted).mode is Mode.HYBRID
        assert pair.end(role).effective_policy is stricter(mine, theirs)
        agreed = pair.last(role, PolicyAgreed)
        own = mine if role is Role.CLIENT else theirs
        assert (agreed.local, agreed.effective) == (own, stricter(mine, theirs))
        assert agreed.peer is (theirs if role is Role.CLIENT else mine)
        assert len(pair.of(role, PolicyAgreed)) == 1


@pytest.mark.parametrize(("mine", "theirs"), POLICIES)
def test_a_classical_epoch_commits_only_where_neither_end_requires_qkd(
    mine: Policy, theirs: Policy
) -> None:
    pair = started(with_policy(CLIENT, mine), with_policy(SERVER, theirs))
    if mine is Policy.REQUIRE:
        with pytest.raises(LocalProtocolError) as caught:
            pair.start_epoch()
        assert caught.value.reason is Reason.POLICY_REQUIRE
        assert pair.client.output_pending == 0
        return
    pair.start_epoch()
    pair.pump()
    if theirs is Policy.REQUIRE:
        failed = pair.last(Role.CLIENT, EpochFailed)
        assert (failed.reason, failed.remote) == (Reason.POLICY_REQUIRE, True)
        # The client now knows, and does not ask again.
        assert pair.client.effective_policy is Policy.REQUIRE
        with pytest.raises(LocalProtocolError):
            pair.start_epoch()
        pair.start_epoch(Mode.HYBRID, qkd_keys("a"))
        pair.pump()
    expected = Mode.HYBRID if theirs is Policy.REQUIRE else Mode.CLASSICAL_ONLY
    for role in BOTH:
        assert pair.end(role).established
        assert [event.mode for event in pair.of(role, EpochCommitted)] == [expected]


@pytest.mark.parametrize("first", [True, False])
def test_a_client_that_requires_qkd_is_not_talked_out_of_it(first: bool) -> None:
    """A server that takes a classical offer cannot have got it from this client."""
    pair = started(CLIENT, SERVER) if first else established()
    pair.start_epoch()
    pair.client._epochs.local_policy = Policy.REQUIRE  # type: ignore[union-attr]
    fails(pair, Reason.POLICY_REQUIRE, pair.pump, Role.CLIENT)


def test_a_server_that_claims_to_require_qkd_and_accepts_without_is_refused() -> None:
    pair = started(CLIENT, SERVER)
    pair.server._epochs.local_policy = Policy.PREFER  # type: ignore[union-attr]
    accept = pair.server._epochs._accept  # type: ignore[union-attr]

    def lying(keys: Any, now: float) -> bytes:
        pair.server._epochs.local_policy = Policy.REQUIRE  # type: ignore[union-attr]
        return accept(keys, now)

    pair.server._epochs._accept = lying  # type: ignore[union-attr]
    pair.start_epoch()
    fails(pair, Reason.POLICY_REQUIRE, pair.pump, Role.CLIENT)


def test_a_policy_may_change_between_epochs() -> None:
    pair = established()
    pair.client._epochs.local_policy = Policy.REQUIRE  # type: ignore[union-attr]
    pair.start_epoch(Mode.HYBRID, qkd_keys("a"))
    pair.pump()
    assert pair.server.effective_policy is Policy.REQUIRE
    assert pair.last(Role.SERVER, PolicyAgreed).peer is Policy.REQUIRE


@pytest.mark.parametrize(
    ("mine", "theirs"), [("etsi-qkd-014", None), ("etsi-qkd-014", "file"), ("file", "etsi-qkd-014")]
)
def test_ends_with_different_key_sources_fall_back_or_refuse(mine: str, theirs: str | None) -> None:
    known = () if theirs is None else (theirs,)
    pair = started(replace(CLIENT, key_sources=(mine,)), replace(SERVER, key_sources=known))
    pair.start_epoch(Mode.HYBRID, qkd_keys("a"))
    pair.pump()
    failed = pair.last(Role.CLIENT, EpochFailed)
    assert (failed.reason, failed.remote) == (Reason.NO_KEY_SOURCE, True)
    assert not pair.of(Role.SERVER, KeysNeeded)
    pair.start_epoch()
    pair.pump()
    assert pair.client.established


def test_without_a_key_source_nothing_is_offered_as_hybrid() -> None:
    pair = started(replace(CLIENT, key_sources=()), SERVER)
    with pytest.raises(LocalProtocolError) as caught:
        pair.start_epoch(Mode.HYBRID, qkd_keys("a"))
    assert caught.value.reason is Reason.NO_KEY_SOURCE


# --- suites ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("mine", "theirs"), list(itertools.product(KemAlgorithm, KemAlgorithm)))
@MODES
def test_a_kem_weaker_than_the_servers_is_refused(
    mine: KemAlgorithm, theirs: KemAlgorithm, mode: Mode
) -> None:
    pair = started(replace(CLIENT, kem=mine), replace(SERVER, kem=theirs))
    pair.start_epoch(mode, keys_for(mode))
    pair.pump()
    weaker = (mine, theirs) == (KemAlgorithm.ML_KEM_768, KemAlgorithm.ML_KEM_1024)
    if weaker:
        assert pair.last(Role.CLIENT, EpochFailed).reason is Reason.UNSUPPORTED_SUITE
        assert not pair.of(Role.SERVER, KeysNeeded)
        assert not pair.client.established
    else:
        assert pair.last(Role.SERVER, EpochCommitted).kem is mine


def test_a_weaker_kem_is_refused_in_a_rekey_as_well() -> None:
    pair = established()
    pair.client._epochs.settings = replace(CLIENT, kem=KemAlgorithm.ML_KEM_768)  # type: ignore[union-attr]
    pair.start_epoch()
    pair.pump()
    assert pair.last(Role.CLIENT, EpochFailed).reason is Reason.UNSUPPORTED_SUITE
    assert pair.server.epoch == 1


@pytest.mark.parametrize("kem", list(KemAlgorithm))
@pytest.mark.parametrize("mode", list(Mode))
def test_an_encapsulation_key_beyond_the_modulus_is_fatal(kem: KemAlgorithm, mode: Mode) -> None:
    def altered(message: bytes) -> list[bytes]:
        offer = decode_epoch_message(message)
        assert isinstance(offer, Offer)
        key = b"\xff" * len(offer.encapsulation_key)
        return [replace(offer, encapsulation_key=key).encode()]

    pair = started(replace(CLIENT, kem=kem), replace(SERVER, kem=kem))
    intercept(pair.client, altered)
    pair.start_epoch(mode, keys_for(mode))
    if mode is Mode.CLASSICAL_ONLY:
        fails(pair, Reason.MALFORMED_MESSAGE, pair.pump, Role.SERVER)
    else:
        pair.pump()  # The driver gave the keys: nothing to raise to, but the tunnel is over.
        closed = pair.last(Role.SERVER, TunnelClosed)
        assert closed == TunnelClosed(Reason.MALFORMED_MESSAGE, clean=False)


def test_a_ciphertext_of_the_other_parameter_set_is_fatal() -> None:
    def altered(message: bytes) -> list[bytes]:
        accept = decode_epoch_message(message)
        assert isinstance(accept, Accept)
        return [replace(accept, ciphertext=bytes(1088)).encode()]

    pair = established()
    intercept(pair.server, altered)
    pair.start_epoch()
    fails(pair, Reason.MALFORMED_MESSAGE, pair.pump, Role.CLIENT)


@pytest.mark.parametrize("aead", list(Aead))
def test_the_client_chooses_the_record_protection(aead: Aead) -> None:
    pair = established(replace(CLIENT, aead=aead))
    for role in BOTH:
        assert pair.last(role, EpochCommitted).aead is aead


# --- attempts --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "reason", [Reason.KEY_NOT_FOUND, Reason.KME_TIMEOUT, Reason.KEY_SPENT, Reason.KME_UNREACHABLE]
)
def test_rejects_carry_their_reason_and_the_next_attempt_works(reason: Reason) -> None:
    pair = started(CLIENT, SERVER)
    honest = pair.server_keys
    pair.server_keys = lambda _needed: reason
    for number in range(1, 4):
        pair.start_epoch(Mode.HYBRID, qkd_keys(f"k{number}"))
        pair.pump()
        for role in BOTH:
            failed = pair.last(role, EpochFailed)
            assert (failed.epoch, failed.attempt, failed.reason) == (1, number, reason)
            assert failed.remote is (role is Role.CLIENT)
    pair.server_keys = honest
    pair.start_epoch(Mode.HYBRID, qkd_keys("good"))
    pair.pump()
    assert pair.last(Role.SERVER, EpochCommitted).attempt == 4
    assert pair.client.established


def test_an_offer_without_an_answer_is_aborted_and_the_late_keys_are_dropped() -> None:
    pair = established()
    honest, pair.server_keys = pair.server_keys, None
    pair.start_epoch(Mode.HYBRID, qkd_keys("slow"))
    pair.pump()
    assert pair.client._epochs is not None
    assert pair.client._epochs.deadline == pair.now + 10.0
    pair.now += 10.0
    pair.client.handle_timeout(pair.now)
    pair.pump()
    assert pair.last(Role.SERVER, EpochFailed).reason is Reason.EPOCH_TIMEOUT
    pair.server.provide_keys(2, 1, qkd_keys("slow"), pair.now)
    pair.server.refuse_keys(2, 1, Reason.KME_TIMEOUT)
    pair.server_keys = honest
    pair.start_epoch(Mode.HYBRID, qkd_keys("quick"))
    pair.pump()
    assert pair.last(Role.SERVER, EpochCommitted).key_ids == ("quick",)


@pytest.mark.parametrize(("epoch", "attempt"), [(1, 1), (2, 2), (3, 1), (0, 0)])
def test_answers_to_another_request_for_keys_are_dropped(epoch: int, attempt: int) -> None:
    pair = established()
    pair.server_keys = None
    pair.start_epoch(Mode.HYBRID, qkd_keys("a"))
    pair.pump()
    keys = qkd_keys("a")
    pair.server.provide_keys(epoch, attempt, keys, pair.now)
    pair.server.refuse_keys(epoch, attempt, Reason.KEY_SPENT)
    assert (keys[0].key, pair.server.output_pending) == (b"", 0)
    pair.server.provide_keys(2, 1, qkd_keys("a"), pair.now)
    pair.pump()
    assert pair.server.epoch == 2


def test_keys_given_twice_are_dropped_the_second_time() -> None:
    pair = established()
    pair.server_keys = None
    pair.start_epoch(Mode.HYBRID, qkd_keys("a"))
    pair.pump()
    pair.server.provide_keys(2, 1, qkd_keys("a"), pair.now)
    again = qkd_keys("a")
    pair.server.provide_keys(2, 1, again, pair.now)
    pair.server.refuse_keys(2, 1, Reason.KEY_SPENT)
    pair.pump()
    assert again[0].key == b""
    assert pair.client.epoch == pair.server.epoch == 2


def test_the_client_is_asked_for_a_rekey_once_until_it_starts_one() -> None:
    pair = established()
    for _ in range(4):
        pair.now += 20
        for role in BOTH:
            pair.end(role).handle_timeout(pair.now)
            pair.pump()
    due = [event.reason for event in pair.of(Role.CLIENT, EpochDue)]
    assert due == [Reason.INITIAL, Reason.REKEY_INTERVAL]
    assert not pair.of(Role.SERVER, EpochDue)


# --- who may come in -------------------------------------------------------------------------

CA = pki.authority()
OTHER_CA = pki.authority("another CA")


def context(
    role: Role, who: TlsIdentity | None, trust: TrustStore = CA.trust, **options: Any
) -> Any:
    settings = {"alpn": [labels.ALPN], "tls13_only": True} | options
    if role is Role.CLIENT:
        return client_context(trust=trust, identity=who, **settings)
    assert who is not None
    return server_context(who, trust=trust, client_auth=ClientAuth.REQUIRED, **settings)


def name_of(role: Role) -> str:
    return "gw-a" if role is Role.CLIENT else "gw-b"


def with_p256(role: Role) -> Any:
    made = context(role, pki.identity(CA, name_of(role)))
    made.set_tmp_ecdh(ec.SECP256R1())
    return made


def careless(role: Role, pair: Pair) -> Pair:
    """One end checks nothing about the other or itself, so that the other end has to."""
    nobody = AuthenticatedPeer(bytes(48), bytes(48), "group", "cipher")
    pair.end(role)._tls._authenticate = lambda: nobody  # type: ignore[union-attr,method-assign]
    return pair


def revoked_pair(role: Role) -> Pair:
    """The other end has a CRL that names this end's certificate."""
    who = pki.identity(CA, name_of(role))
    trust = TrustStore(CA.trust.certificates, (pki.crl(CA, who.chain[0]),))
    judge = other(role)
    contexts = {
        role: context(role, who),
        judge: context(judge, pki.identity(CA, name_of(judge)), trust),
    }
    tls = {"client_tls": contexts[Role.CLIENT], "server_tls": contexts[Role.SERVER]}
    return careless(role, make_pair(**tls))


def intruder(role: Role, what: str) -> Pair:
    """A pair of which one end has a certificate that must not do."""
    name = name_of(role)
    if what == "revoked":
        return revoked_pair(role)
    made = {
        "wrong name": lambda: context(role, pki.identity(CA, "gw-x")),
        "name in the subject only": lambda: context(role, pki.identity(CA, common_name=name)),
        "wildcard": lambda: context(role, pki.identity(CA, "*.example", "gw-*")),
        "other case": lambda: context(role, pki.identity(CA, name.upper())),
        "expired": lambda: context(role, pki.identity(CA, name, expired=True)),
        "not yet valid": lambda: context(role, pki.identity(CA, name, not_yet_valid=True)),
        "other CA": lambda: context(role, pki.identity(OTHER_CA, name)),
        "wrong purpose": lambda: context(
            role,
            pki.identity(CA, name, server=role is Role.CLIENT, client=role is Role.SERVER),
        ),
        "no certificate": lambda: context(role, None),
        "no ALPN": lambda: context(role, pki.identity(CA, name), alpn=()),
        "other ALPN": lambda: context(role, pki.identity(CA, name), alpn=[b"h2"]),
    }[what]()
    if role is Role.CLIENT:
        return careless(role, make_pair(client_tls=made))
    return careless(role, make_pair(server_tls=made))


REFUSED = {
    "wrong name": Reason.PEER_NAME_MISMATCH,
    "name in the subject only": Reason.PEER_NAME_MISMATCH,
    "wildcard": Reason.PEER_NAME_MISMATCH,
    "other case": Reason.PEER_NAME_MISMATCH,
    "expired": Reason.CERTIFICATE_EXPIRED,
    "not yet valid": Reason.CERTIFICATE_INVALID,
    "revoked": Reason.CERTIFICATE_REVOKED,
    "other CA": Reason.CERTIFICATE_INVALID,
    "wrong purpose": Reason.CERTIFICATE_INVALID,
    "no certificate": Reason.TLS_FAILURE,
    "no ALPN": Reason.TLS_FAILURE,
    "other ALPN": Reason.TLS_FAILURE,
}
CASES = [
    (role, what)
    for role in BOTH
    for what in REFUSED
    # A server without a certificate, or with another protocol, refuses to serve by itself.
    if role is Role.CLIENT or what not in {"no certificate", "other ALPN"}
]


def run_until_refused(pair: Pair, judge: Role) -> RemoteProtocolError:
    """Carry bytes until the judging end ends the tunnel."""
    for _ in range(4):
        for sender in BOTH:
            data = pair.take_output(sender)
            try:
                pair.deliver(other(sender), data)
            except RemoteProtocolError as error:
                assert other(sender) is judge
                return error
    raise AssertionError("nobody was refused")


@pytest.mark.parametrize(("role", "what"), CASES, ids=str)
def test_a_peer_that_may_not_come_in_learns_nothing(role: Role, what: str) -> None:
    """The cause stays with the judge. What the peer gets is the end of the connection."""
    pair = intruder(role, what)
    judge = other(role)
    error = run_until_refused(pair, judge)
    assert error.reason is REFUSED[what], error
    pair.collect(judge)
    assert pair.last(judge, TunnelClosed) == TunnelClosed(REFUSED[what], clean=False)
    assert not pair.of(judge, HandshakeCompleted)
    # Not a byte after the fault was found: no alert, no ticket.
    assert pair.take_output(judge) == b""
    sent = split_records(bytes(pair.wire[judge]))
    assert all(record[0] != 21 for record in sent)
    for end in BOTH:
        assert not pair.of(end, TunnelEstablished)


def test_what_a_refused_client_receives_is_the_same_whatever_the_cause() -> None:
    """Kinds and number of records; their sizes are those of the server's own first flight."""
    seen = {}
    for what in ("wrong name", "expired", "not yet valid", "other CA", "revoked", "wrong purpose"):
        pair = intruder(Role.CLIENT, what)
        run_until_refused(pair, Role.SERVER)
        records = split_records(bytes(pair.wire[Role.SERVER]))
        seen[what] = [(record[0], len(record) // 64) for record in records]
    kinds = {tuple(kind for kind, _size in records) for records in seen.values()}
    assert len(kinds) == 1
    honest = established()
    assert len(split_records(bytes(honest.wire[Role.SERVER]))) > len(next(iter(seen.values())))


@pytest.mark.parametrize("role", BOTH)
def test_a_classical_group_is_refused_unless_the_operator_insists(role: Role) -> None:
    """The end that is limited to it agrees; the other one does not."""
    judge = other(role)
    lax = {"allow_classical_group": True}
    client = replace(CLIENT, **lax) if role is Role.CLIENT else CLIENT
    server = replace(SERVER, **lax) if role is Role.SERVER else SERVER
    made = with_p256(role)
    tls = {"client_tls": made} if role is Role.CLIENT else {"server_tls": made}
    pair = make_pair(client, server, **tls)
    assert run_until_refused(pair, judge).reason is Reason.TLS_GROUP
    assert pair.take_output(judge) == b""
    both = make_pair(replace(CLIENT, **lax), replace(SERVER, **lax), **tls)
    both.pump()
    assert both.last(judge, HandshakeCompleted).group == "secp256r1"


@pytest.mark.parametrize("role", BOTH)
def test_a_pinned_certificate_is_the_only_one_that_will_do(role: Role) -> None:
    judge = other(role)
    right = certificate_hash(pki.identity(CA, name_of(role)).chain[0])
    for pinned, good in ((right, True), (bytes(48), False)):
        settings = {Role.CLIENT: CLIENT, Role.SERVER: SERVER}
        settings[judge] = replace(settings[judge], pinned_certificate_hash=pinned)
        pair = make_pair(settings[Role.CLIENT], settings[Role.SERVER])
        if good:
            pair.pump()
            assert pair.last(judge, HandshakeCompleted).peer_certificate_hash == right
        else:
            assert run_until_refused(pair, judge).reason is Reason.PEER_NAME_MISMATCH
            assert pair.take_output(judge) == b""


@pytest.mark.parametrize("role", BOTH)
def test_a_pin_does_not_replace_the_name(role: Role) -> None:
    judge = other(role)
    who = pki.identity(CA, "gw-x")
    settings = {Role.CLIENT: CLIENT, Role.SERVER: SERVER}
    settings[judge] = replace(
        settings[judge], pinned_certificate_hash=certificate_hash(who.chain[0])
    )
    made = context(role, who)
    tls = {"client_tls": made} if role is Role.CLIENT else {"server_tls": made}
    pair = make_pair(settings[Role.CLIENT], settings[Role.SERVER], **tls)
    assert run_until_refused(pair, judge).reason is Reason.PEER_NAME_MISMATCH


@pytest.mark.parametrize("algorithm", [pki.P256, pki.ED25519, pki.RSA_2048, pki.ML_DSA_65])
def test_certificates_of_every_algorithm_will_do(algorithm: str) -> None:
    pair = make_pair(
        client_tls=context(Role.CLIENT, pki.identity(CA, "gw-a", algorithm=algorithm)),
        server_tls=context(Role.SERVER, pki.identity(CA, "gw-b", algorithm=algorithm)),
    )
    pair.pump()
    pair.start_epoch()
    pair.pump()
    assert pair.client.established


def test_one_of_several_names_will_do() -> None:
    pair = make_pair(client_tls=context(Role.CLIENT, pki.identity(CA, "other", "gw-a", "10.0.0.1")))
    pair.pump()
    assert pair.of(Role.SERVER, HandshakeCompleted)


def test_a_gateway_does_not_talk_to_itself() -> None:
    """Both ends with one identity: reflection of a whole handshake."""
    pair = make_pair(server_tls=context(Role.SERVER, pki.identity(CA, "gw-a")))
    assert run_until_refused(pair, Role.CLIENT).reason is Reason.PEER_NAME_MISMATCH


def as_version_4(who: TlsIdentity) -> crypto.X509:
    """The same certificate with a version that does not exist, signed by the CA again."""
    tbs = who.chain[0].tbs_certificate_bytes
    version = tbs.index(bytes.fromhex("a003020102")) + 4
    tbs = tbs[:version] + b"\x03" + tbs[version + 1 :]
    signature = CA.private_key.sign(tbs, ec.ECDSA(hashes.SHA256()))
    body = tbs + bytes.fromhex("300a06082a8648ce3d040302")
    body += bytes([3, len(signature) + 1, 0]) + signature
    der = b"\x30\x82" + len(body).to_bytes(2, "big") + body
    return crypto.load_certificate(crypto.FILETYPE_ASN1, der)


@pytest.mark.filterwarnings("ignore:Passing pyOpenSSL X509 objects:DeprecationWarning")
def test_a_certificate_only_openssl_can_read_is_a_refusal_and_not_a_crash() -> None:
    """OpenSSL takes certificates that the stricter parser refuses; a CA may have signed one."""
    who = pki.identity(CA, "gw-a")
    made = context(Role.CLIENT, who)
    made.use_certificate(as_version_4(who))
    pair = careless(Role.CLIENT, make_pair(client_tls=made))
    assert run_until_refused(pair, Role.SERVER).reason is Reason.CERTIFICATE_INVALID
    assert pair.take_output(Role.SERVER) == b""


def test_tls_12_does_not_come_in() -> None:
    who = pki.identity(CA, "gw-a")
    made = context(Role.CLIENT, who, tls13_only=False)
    made.set_max_proto_version(SSL.TLS1_2_VERSION)
    pair = make_pair(client_tls=made)
    assert run_until_refused(pair, Role.SERVER).reason is Reason.TLS_FAILURE
    assert pair.wire[Role.SERVER] == b""

"""What an attacker can read who has the relays, the wire, and this or that secret beside them.

Two real tunnel cores run three epochs over memory, with keys that have travelled over three
simulated relays. Everything either of them sends is recorded, and everything between the relays.
The attacker (`tests/sim/attacker.py`) is an implementation of its own: with all the secrets it
reads every byte, so that its failing says something about the secret it lacks.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import pytest

from qproxy.keys import QkdKey
from qproxy.modes import KemProviderChoice, Mode
from qproxy.sim.events import Compromise
from qproxy.tunnel.events import EpochCommitted
from qproxy.tunnel.settings import Role
from tests.sim.attacker import Attacker, CannotReadError, Loot, Transcript
from tests.sim.helpers import Trial, fixed, network_of
from tests.tunnel import helpers
from tests.tunnel.adversary import logged_context
from tests.tunnel.helpers import CLIENT, SERVER, Pair, make_pair

RELAYS = ("r1", "r2", "r3")
CHAIN = network_of(
    [
        fixed("one", "kme-a", "r1"),
        fixed("two", "r1", "r2"),
        fixed("three", "r2", "r3"),
        fixed("four", "r3", "kme-b"),
    ],
    relays=RELAYS,
)
REQUESTS = [b"a request of epoch 1", b"a request of epoch 2", b"a request of epoch 3"]
ANSWERS = [b"an answer of epoch 1", b"an answer of epoch 2", b"an answer of epoch 3"]


class RecordingKem:
    """The real ML-KEM, whose secrets are written down."""

    def __init__(self) -> None:
        self._real = helpers.load_kem_provider(KemProviderChoice.OPENSSL)
        self.secrets: list[bytes] = []

    def __getattr__(self, name):
        return getattr(self._real, name)

    def encapsulate(self, algorithm, encapsulation_key):
        secret, ciphertext = self._real.encapsulate(algorithm, encapsulation_key)
        self.secrets.append(bytes(secret))
        return secret, ciphertext


@dataclass
class Recording:
    """A tunnel's life, and everything that somebody could have got hold of."""

    wire: dict[str, bytes]
    tls: dict[str, bytes]
    kem: list[bytes]
    qkd: list[bytes]
    trial: Trial
    transcripts: list[Transcript]

    def loot(self, *names: str) -> Loot:
        every = {"tls": self.tls, "kem": self.kem, "qkd": self.qkd}
        return Loot(**{name: every[name] for name in names})

    def read(self, loot: Loot, *, overheard: bool = True):
        """Read with some loot; OFFERs and ACCEPTs are thrown in, so that no key fails for them."""
        return Attacker(self.wire, loot, self.transcripts if overheard else ()).read()


def record(compromised=RELAYS, *, hostile_from=1) -> Recording:
    """Run a tunnel of three hybrid epochs over the relays, some of them compromised.

    Args:
        compromised: the relays that keep copies.
        hostile_from: the epoch from which on they do.
    """
    trial, log, kem = Trial(CHAIN), {}, RecordingKem()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(helpers, "KEM", kem)
        pair = make_pair(
            replace(CLIENT, local_sae_id="gw-a", peer_sae_id="gw-b"),
            replace(SERVER, local_sae_id="gw-b", peer_sae_id="gw-a"),
            client_tls=logged_context(Role.CLIENT, "gw-a", log),
            server_tls=logged_context(Role.SERVER, "gw-b", log),
        )
    qkd: list[bytes] = []
    pair.server_keys = lambda needed: [
        QkdKey(key_id, bytearray(key))
        for key_id, key in trial.redeem([key.key_id for key in needed.keys]).items()
    ]
    pair.pump()
    stream_id = 0
    for epoch, (request, answer) in enumerate(zip(REQUESTS, ANSWERS, strict=True), 1):
        if epoch == hostile_from:
            for relay in compromised:
                trial.apply(Compromise(relay))
        drawn = trial.draw()
        qkd += drawn.values()
        pair.start_epoch(Mode.HYBRID, [QkdKey(i, bytearray(k)) for i, k in drawn.items()])
        pair.pump()
        assert [pair.last(role, EpochCommitted).mode for role in Role] == [Mode.HYBRID] * 2
        stream_id = stream_id or open_stream(pair)
        for end, data in ((pair.client, request), (pair.server, answer)):
            assert end.send_data(stream_id, memoryview(data)) == len(data)
        pair.pump()
    wire = {"client": bytes(pair.wire[Role.CLIENT]), "server": bytes(pair.wire[Role.SERVER])}
    whole = Recording(wire, log, kem.secrets, qkd, trial, [])
    whole.transcripts = whole.read(whole.loot("tls", "kem", "qkd"), overheard=False).transcripts
    return whole


def open_stream(pair: Pair) -> int:
    stream_id = pair.client.open_stream("web", now=pair.now)
    pair.pump()
    pair.server.accept_stream(stream_id)
    pair.pump()
    return stream_id


@pytest.fixture(scope="module")
def recording() -> Recording:
    return record()


def relays_store(recording: Recording, *relays: str) -> list[bytes]:
    """What relays kept of the keys they passed on."""
    return [c.key for name in relays for c in recording.trial.network.relays[name].copies]


def test_with_every_secret_he_reads_every_byte_in_both_directions(recording):
    """So the attack works, and a failure below is for want of a secret."""
    reading = recording.read(recording.loot("tls", "kem", "qkd"), overheard=False)
    assert len(reading.transcripts) == 3
    assert reading.data == {"client": b"".join(REQUESTS), "server": b"".join(ANSWERS)}


def test_given_the_epoch_messages_he_needs_no_traffic_secret_of_tls(recording):
    """So where TLS's secrets are missing below, it is the exporter that is missing."""
    known = recording.loot("tls", "kem", "qkd")
    exporter = {"EXPORTER_SECRET": recording.tls["EXPORTER_SECRET"]}
    reading = recording.read(replace(known, tls=exporter))
    assert reading.data == {"client": b"".join(REQUESTS), "server": b"".join(ANSWERS)}
    wrong = {"EXPORTER_SECRET": bytes(48)}
    with pytest.raises(CannotReadError):
        recording.read(replace(known, tls=wrong))


@pytest.mark.parametrize(
    "names",
    [names for size in range(3) for names in itertools.combinations(("tls", "kem", "qkd"), size)],
    ids=lambda names: "+".join(names) or "nothing",
)
def test_with_any_of_them_missing_he_reads_nothing(recording, names):
    attacker = Attacker(recording.wire, recording.loot(*names), recording.transcripts)
    with pytest.raises(CannotReadError):
        attacker.read()
    assert attacker.reading.data == {"client": b"", "server": b""}


def test_every_relays_store_and_the_whole_wire_are_not_enough_without_the_ml_kem_secret(recording):
    """Every key of every relay, and TLS broken on top."""
    relays = relays_store(recording, *RELAYS)
    assert set(relays) == set(recording.qkd)
    for loot in (Loot(qkd=relays), Loot(qkd=relays, tls=recording.tls)):
        with pytest.raises(CannotReadError):
            recording.read(loot)


def test_the_ml_kem_secret_is_not_enough_without_the_qkd_key(recording):
    """Every ML-KEM secret, TLS broken, and the wire between the relays."""
    between_relays = [sealed for _, sealed in recording.trial.wire]
    for qkd in (None, between_relays):
        with pytest.raises(CannotReadError):
            recording.read(Loot(kem=recording.kem, tls=recording.tls, qkd=qkd))


@pytest.mark.parametrize("relay", RELAYS)
def test_one_compromised_relay_is_as_good_as_all_of_them(relay):
    """Which is why QKD over relays never stands alone here."""
    recording = record([relay])
    others = [name for name in RELAYS if name != relay]
    assert relays_store(recording, *others) == []
    loot = Loot(tls=recording.tls, kem=recording.kem, qkd=relays_store(recording, relay))
    assert recording.read(loot).data["client"] == b"".join(REQUESTS)
    with pytest.raises(CannotReadError):
        recording.read(replace(loot, kem=None))


def test_a_hop_key_and_what_was_on_the_hop_are_as_good_as_the_key_itself(recording):
    copies = recording.trial.network.relays["r2"].copies
    sealed = [message for span, message in recording.trial.wire if span == "two"]
    keys = [
        bytes(a ^ b for a, b in zip(message, copy.hop_key_in, strict=True))
        for message, copy in zip(sealed, copies, strict=True)
    ]
    assert keys == recording.qkd
    loot = Loot(tls=recording.tls, kem=recording.kem, qkd=keys)
    assert recording.read(loot).data["server"] == b"".join(ANSWERS)


def test_relays_that_fall_later_give_away_nothing_for_the_chain_holds_the_first_key():
    """Every later secret is his; what the first key put into the chain is not."""
    recording = record(hostile_from=2)
    relays = relays_store(recording, *RELAYS)
    assert set(relays) == set(recording.qkd[1:])
    attacker = Attacker(
        recording.wire,
        Loot(tls=recording.tls, kem=recording.kem, qkd=relays),
        recording.transcripts,
    )
    with pytest.raises(CannotReadError, match="epoch 1"):
        attacker.read()


@pytest.mark.parametrize("lost", [2, 3])
@pytest.mark.parametrize("secret", ["kem", "qkd"])
def test_one_secret_that_he_lacks_ends_his_reading_at_that_epoch(recording, secret, lost):
    known = recording.loot("tls", "kem", "qkd")
    kept = list(getattr(known, secret))
    kept[lost - 1] = bytes(32)
    attacker = Attacker(recording.wire, replace(known, **{secret: kept}), recording.transcripts)
    with pytest.raises(CannotReadError, match=f"epoch {lost}"):
        attacker.read()
    assert attacker.reading.data["client"] == b"".join(REQUESTS[: lost - 1])


def test_no_secret_is_on_the_wire(recording):
    wire = recording.wire["client"] + recording.wire["server"]
    wire += b"".join(sealed for _, sealed in recording.trial.wire)
    for secret in (*recording.kem, *recording.qkd, *recording.tls.values()):
        assert secret not in wire

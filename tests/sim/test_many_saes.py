"""Hundreds of SAEs, any of them with any other, and keys for several slave SAEs at once."""

import random

import pytest
import trio

from qproxy.config.network import KeyFormatConfig, RouteConfig
from qproxy.errors import KeySourceError, Reason
from qproxy.sim.store import KeysNotFound, NotNamed, SaePair
from tests import pki
from tests.sim.helpers import Trial, fixed, network_of
from tests.sim.test_server import config as config  # noqa: PLC0414 - a fixture
from tests.sim.test_server import running, with_saes

COUNT = 150
SAES = {f"sae-{kme}{i}": f"kme-{kme}" for kme in "ab" for i in range(COUNT)}
NOT_FOUND = "one or more keys specified are not found on KME"
PLENTY = {"initial_buffer_bits": 10_000_000, "max_buffer_bits": 10_000_000}


def one_span(**options):
    return network_of([fixed("span", "kme-a", "kme-b", **PLENTY)], **options)


def test_300_saes_in_thousands_of_pairs_get_their_own_keys_and_nobody_elses():
    trial, choose = Trial(one_span(), saes=SAES), random.Random(3)
    taken = []
    for _ in range(2000):
        master = choose.choice(list(SAES))
        slave = choose.choice([sae for sae, kme in SAES.items() if kme != SAES[master]])
        status, answer = trial.ask(master, slave, "enc_keys")
        assert status == 200
        taken.append((master, slave, answer["keys"][0]))
    choose.shuffle(taken)
    pairs = {(master, slave) for master, slave, _ in taken}
    assert len(pairs) > 1900
    for master, slave, key in taken:
        document = {"key_IDs": [{"key_ID": key["key_ID"]}]}
        stranger = choose.choice([s for s, k in SAES.items() if k == SAES[slave] and s != slave])
        assert trial.ask(stranger, master, "dec_keys", document)[0] == 401
        status, answer = trial.ask(slave, master, "dec_keys", document)
        assert (status, answer["keys"]) == (200, [key])
        assert trial.ask(slave, master, "dec_keys", document)[1] == {"message": NOT_FOUND}
    assert trial.network.store.unclaimed(SaePair(*taken[0][:2]), 0.0) == 0


async def test_300_saes_over_tls_with_certificates_of_their_own(config):
    ca = pki.authority()
    pairs = [(f"sae-a{i}", f"sae-b{i}") for i in range(COUNT)]
    slots = trio.CapacityLimiter(30)
    found = {}
    async with running(with_saes(config, SAES)) as trial:

        async def exchange(master, slave):
            async with slots:
                ends = [
                    trial.source(local, peer, kme=SAES[local], identity=pki.identity(ca, local))
                    for local, peer in ((master, slave), (slave, master))
                ]
                (key,) = await ends[0].get_keys(1, 256)
                (same,) = await ends[1].get_keys_by_id([key.key_id], 256)
                with pytest.raises(KeySourceError) as caught:
                    await ends[1].get_keys_by_id([key.key_id], 256)
                assert caught.value.reason is Reason.KEY_NOT_FOUND
                found[master] = (bytes(key.key), bytes(same.key))
                for end in ends:
                    await end.aclose()

        async with trio.open_nursery() as nursery:
            for master, slave in pairs:
                nursery.start_soon(exchange, master, slave)
    assert len(found) == COUNT
    assert all(near == far for near, far in found.values())
    assert len({near for near, _ in found.values()}) == COUNT


# --- additional_slave_SAE_IDs (clause 6.2) ------------------------------------------------------

FEW = {"gw-a": "kme-a", "gw-a2": "kme-a", "gw-b": "kme-b", "gw-b2": "kme-b", "gw-b3": "kme-b",
       "gw-b4": "kme-b"}  # fmt: skip


@pytest.fixture
def trial():
    return Trial(one_span(keys=KeyFormatConfig(max_sae_id_count=2)), saes=FEW)


def draw(trial, *also, number=2):
    document = {"number": number, "additional_slave_SAE_IDs": list(also)}
    return trial.ask("gw-a", "gw-b", "enc_keys", document)


def fetch(trial, sae, keys, master="gw-a"):
    document = {"key_IDs": [{"key_ID": key["key_ID"]} for key in keys]}
    return trial.ask(sae, master, "dec_keys", document)


def test_every_slave_that_was_named_gets_the_keys_once_and_nobody_else(trial):
    assert trial.status()["max_SAE_ID_count"] == 2
    status, answer = draw(trial, "gw-b2", "gw-b3")
    keys = answer["keys"]
    assert (status, len(keys)) == (200, 2)
    for slave in ("gw-b2", "gw-b", "gw-b3"):
        assert fetch(trial, "gw-b4", keys)[0] == 401
        assert fetch(trial, slave, keys)[1]["keys"] == keys
        assert fetch(trial, slave, keys) == (400, {"message": NOT_FOUND})
    assert fetch(trial, "gw-b4", keys)[0] == 400, "nothing is known of them any more"


def test_keys_for_several_slaves_cost_the_link_no_more(trial):
    before = trial.status()["stored_key_count"]
    draw(trial, "gw-b2", "gw-b3", number=3)
    assert trial.status()["stored_key_count"] == before - 3


@pytest.mark.parametrize(
    "also",
    [
        ["gw-b2", "gw-b3", "gw-b4"],  # more than max_SAE_ID_count
        ["gw-b"],  # the slave itself
        ["gw-b2", "gw-b2"],
        ["gw-a2"],  # not across the link
        ["gw-a"],
        ["nobody"],
        [""],
    ],
    ids=str,
)
def test_what_cannot_be_met_is_a_bad_request_and_takes_nothing(trial, also):
    before = trial.status()["stored_key_count"]
    assert draw(trial, *also)[0] == 400
    assert trial.status()["stored_key_count"] == before


def test_a_slave_of_another_route_is_refused():
    routes = [
        RouteConfig(name="one", between=("kme-a", "kme-b"), saes=("gw-a", "gw-b")),
        RouteConfig(name="two", between=("kme-a", "kme-b"), saes=("gw-a", "gw-b2")),
    ]
    network = one_span(routes=routes, keys=KeyFormatConfig(max_sae_id_count=2))
    trial = Trial(network, saes={name: FEW[name] for name in ("gw-a", "gw-b", "gw-b2")})
    assert draw(trial, "gw-b2")[0] == 400
    assert draw(trial)[0] == 200


def test_one_full_slave_refuses_the_whole_request(trial):
    trial.network.store._max_unclaimed = 3
    assert draw(trial, "gw-b2", number=2)[0] == 200
    assert draw(trial, "gw-b3", number=2)[0] == 503
    assert fetch(trial, "gw-b", draw(trial, number=1)[1]["keys"])[0] == 200
    store = trial.network.store
    assert store.unclaimed(SaePair("gw-a", "gw-b3"), 0.0) == 0


def test_a_store_that_is_full_for_one_slave_takes_nothing_for_any(trial):
    trial.network.store._max_waiting = 3
    before = trial.status()["stored_key_count"]
    assert draw(trial, "gw-b2", number=2)[0] == 503
    assert trial.status()["stored_key_count"] == before
    assert trial.network.store.unclaimed(SaePair("gw-a", "gw-b"), 0.0) == 0


def test_the_store_tells_a_slave_that_had_its_keys_from_one_that_was_never_named(trial):
    keys = draw(trial, "gw-b2")[1]["keys"]
    ids, store = [key["key_ID"] for key in keys], trial.network.store
    store.take(SaePair("gw-a", "gw-b"), ids, 0.0)
    with pytest.raises(KeysNotFound):
        store.take(SaePair("gw-a", "gw-b"), ids, 0.0)
    with pytest.raises(NotNamed):
        store.take(SaePair("gw-a", "gw-b3"), ids, 0.0)

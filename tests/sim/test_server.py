"""The whole simulator, and the client of ETSI GS QKD 014, over loopback TLS."""

import contextlib
import dataclasses
import json
import logging
from types import SimpleNamespace

import pytest
import trio
import trio.testing

from qproxy.address import TcpAddress, UnixAddress
from qproxy.config.model import ControlConfig, KmeConfig, KmeSimConfig, LinkConfig
from qproxy.errors import ConfigError, KeySourceError, Reason
from qproxy.net.http_client import HttpClient
from qproxy.sim.events import Cut, Hang, Restore, TimedEvent
from qproxy.sim.server import run_kme_sim
from qproxy.sources.etsi014 import Etsi014Source
from qproxy.tls.context import client_context
from qproxy.tls.identity import TrustStore
from tests import pki
from tests.sim.helpers import fixed, network_of

ANY = TcpAddress("127.0.0.1", 0)
SAES = {"gw-a": "kme-a", "gw-b": "kme-b", "gw-c": "kme-b"}
LINK = LinkConfig(key_rate_bps=0.0, initial_key_count=200, max_key_count=1000)


@pytest.fixture
def config(tmp_path):
    ca = pki.authority()
    kmes = {}
    for name in ("kme-a", "kme-b"):
        files = pki.write_identity(tmp_path, name, pki.identity(ca, name, "127.0.0.1"), ca)
        kmes[name] = KmeConfig(
            name=name,
            listen=ANY,
            certificate=files.certificate,
            private_key=files.private_key,
            ca=files.ca,
        )
    return KmeSimConfig(
        path=tmp_path / "sim.yaml",
        kmes=kmes,
        saes=SAES,
        link=LINK,
        control=ControlConfig(listen=ANY),
    )


def with_saes(config, saes):
    """The same simulator for other SAEs."""
    return dataclasses.replace(config, saes=saes)


class Trial:
    """A running simulator and the clients a test makes."""

    def __init__(self, addresses):
        self.addresses = addresses
        self.control_client = HttpClient(tls=None)
        self.sources = [self.control_client]

    def source(self, local, peer, *, kme=None, identity=None, trust=None, **options):
        ca = pki.authority()
        tls = client_context(
            trust=trust or TrustStore((ca.certificate,)),
            identity=identity or pki.identity(ca, local),
        )
        kme = kme or SAES[local]
        options.setdefault("server_name", kme)
        client = HttpClient(tls=tls, **options)
        url = f"https://{self.addresses.kmes[kme]}"
        source = Etsi014Source(f"source-{local}", client, url, local, peer)
        self.sources.append(source)
        return source

    async def control(self, **action):
        url = f"http://{self.addresses.control}/link"
        answer = await self.control_client.request(
            "POST" if action else "GET", url, json=action or None
        )
        assert answer.status == 200, answer.body
        return json.loads(answer.body)


@contextlib.asynccontextmanager
async def running(config, **options):
    async with trio.open_nursery() as nursery:

        async def start(*, task_status):
            await run_kme_sim(config, task_status=task_status, **options)

        trial = Trial(await nursery.start(start))
        try:
            yield trial
        finally:
            with trio.CancelScope(shield=True):
                for source in trial.sources:
                    await source.aclose()
            nursery.cancel_scope.cancel()


async def refused(awaitable):
    with pytest.raises(KeySourceError) as caught:
        await awaitable
    return caught.value.reason


async def test_both_gateways_get_the_same_keys(config):
    async with running(config) as trial:
        a, b = trial.source("gw-a", "gw-b"), trial.source("gw-b", "gw-a")
        for master, slave in ((a, b), (b, a)):
            taken = await master.get_keys(3, 512)
            wanted = [key.key_id for key in reversed(taken)]
            found = await slave.get_keys_by_id(wanted, 512)
            assert [key.key for key in reversed(found)] == [key.key for key in taken]
            assert {len(key.key) for key in taken} == {64}
            assert all(key.simulated for key in [*taken, *found])
            (one,) = await master.get_keys(1, 256)
            assert (await slave.get_keys_by_id([one.key_id], 256))[0].key == one.key


async def test_status_says_simulated_and_how_the_link_is(config):
    async with running(config) as trial:
        status = await trial.source("gw-a", "gw-b").status()
        assert (status.source_kme_id, status.target_kme_id) == ("kme-a", "kme-b")
        assert status.simulated
        assert (status.qber, status.key_rate_bps, status.stored_key_count) == (0.01, 0.0, 200)


async def test_a_key_is_given_once(config):
    async with running(config) as trial:
        a, b = trial.source("gw-a", "gw-b"), trial.source("gw-b", "gw-a")
        (key,) = await a.get_keys(1, 256)
        await b.get_keys_by_id([key.key_id], 256)
        assert await refused(b.get_keys_by_id([key.key_id], 256)) is Reason.KEY_NOT_FOUND


async def test_many_requests_at_once_from_both_ends_never_share_a_key(config):
    async with running(config) as trial:
        sources = {name: trial.source(name, peer) for name, peer in
                   (("gw-a", "gw-b"), ("gw-b", "gw-a"))}  # fmt: skip
        taken, found = [], []

        async def exchange(master, slave):
            for _ in range(5):
                keys = await master.get_keys(4, 256)
                taken.extend((key.key_id, bytes(key.key)) for key in keys)
                again = await slave.get_keys_by_id([key.key_id for key in keys], 256)
                found.extend((key.key_id, bytes(key.key)) for key in again)

        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(exchange, sources["gw-a"], sources["gw-b"])
                nursery.start_soon(exchange, sources["gw-b"], sources["gw-a"])
        assert len(taken) == 160
        assert sorted(found) == sorted(taken)
        assert len({key_id for key_id, _ in taken}) == len({key for _, key in taken}) == 160
        status = await sources["gw-a"].status()
        assert status.stored_key_count == 40


async def test_of_many_who_ask_for_one_key_by_id_one_gets_it(config):
    async with running(config) as trial:
        (key,) = await trial.source("gw-a", "gw-b").get_keys(1, 256)
        outcomes = []

        async def ask(slave):
            try:
                outcomes.extend(await slave.get_keys_by_id([key.key_id], 256))
            except KeySourceError as error:
                outcomes.append(error.reason)

        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(ask, trial.source("gw-b", "gw-a"))
        assert outcomes.count(Reason.KEY_NOT_FOUND) == 7
        assert [k.key for k in outcomes if k is not Reason.KEY_NOT_FOUND] == [key.key]


async def test_exhaustion_is_told_apart_from_a_kme_that_is_not_available(config):
    async with running(config) as trial:
        a = trial.source("gw-a", "gw-b")
        await trial.control(action="cut")
        assert len(await a.get_keys(128, 256)) == 128
        assert await refused(a.get_keys(128, 256)) is Reason.KEYS_EXHAUSTED
        assert len(await a.get_keys(72, 256)) == 72
        assert await refused(a.get_keys(1, 256)) is Reason.KEYS_EXHAUSTED
        assert (await a.status()).qber is None
        await trial.control(action="unavailable", kme="kme-a")
        assert await refused(a.get_keys(1, 256)) is Reason.KME_UNAVAILABLE


async def test_the_link_makes_keys_by_the_clock_that_is_passed_in(config):
    clock = SimpleNamespace(now=5.0)
    link = dataclasses.replace(LINK, key_rate_bps=256.0, initial_key_count=0)
    config = dataclasses.replace(config, link=link)
    async with running(config, clock=lambda: clock.now) as trial:
        a = trial.source("gw-a", "gw-b")
        assert await refused(a.get_keys(1, 256)) is Reason.KEYS_EXHAUSTED
        clock.now += 2.0
        assert len(await a.get_keys(2, 256)) == 2
        assert await refused(a.get_keys(1, 256)) is Reason.KEYS_EXHAUSTED


@pytest.mark.parametrize("size_bits", [2048, 56], ids=["large", "small"])
async def test_what_the_kme_does_not_allow_is_a_bad_request(config, size_bits):
    async with running(config) as trial:
        a = trial.source("gw-a", "gw-b")
        assert await refused(a.get_keys(1, size_bits)) is Reason.KME_BAD_REQUEST


# --- who is who -----------------------------------------------------------------------------


async def test_a_certificate_that_names_no_sae_is_unauthorized(config):
    async with running(config) as trial:
        stranger = pki.identity(pki.authority(), "stranger")
        source = trial.source("gw-a", "gw-b", identity=stranger)
        assert await refused(source.status()) is Reason.KME_UNAUTHORIZED


async def test_the_common_name_is_no_name(config):
    async with running(config) as trial:
        identity = pki.identity(pki.authority(), "stranger", common_name="gw-a")
        source = trial.source("gw-a", "gw-b", identity=identity)
        assert await refused(source.status()) is Reason.KME_UNAUTHORIZED


async def test_a_certificate_that_names_two_saes_of_one_kme_is_unauthorized(config):
    async with running(config) as trial:
        identity = pki.identity(pki.authority(), "gw-b", "gw-c")
        source = trial.source("gw-b", "gw-a", identity=identity)
        assert await refused(source.status()) is Reason.KME_UNAUTHORIZED


async def test_a_certificate_may_name_an_sae_of_each_kme(config):
    async with running(config) as trial:
        both = pki.identity(pki.authority(), "gw-a", "gw-b", "something.else")
        a = trial.source("gw-a", "gw-b", identity=both)
        b = trial.source("gw-b", "gw-a", identity=both)
        (key,) = await a.get_keys(1, 256)
        assert (await b.get_keys_by_id([key.key_id], 256))[0].key == key.key


async def test_a_sae_is_unauthorized_at_the_other_ones_kme(config):
    async with running(config) as trial:
        source = trial.source("gw-a", "gw-b", kme="kme-b")
        assert await refused(source.status()) is Reason.KME_UNAUTHORIZED


async def test_a_sae_that_was_not_named_gets_no_key(config):
    async with running(config) as trial:
        (key,) = await trial.source("gw-a", "gw-b").get_keys(1, 256)
        other = trial.source("gw-c", "gw-a")
        assert await refused(other.get_keys_by_id([key.key_id], 256)) is Reason.KME_UNAUTHORIZED
        right = trial.source("gw-b", "gw-a")
        assert (await right.get_keys_by_id([key.key_id], 256))[0].key == key.key


async def test_without_a_client_certificate_there_is_no_answer(config):
    async with running(config) as trial:
        tls = client_context(trust=pki.authority().trust)
        client = HttpClient(tls=tls, server_name="kme-a")
        trial.sources.append(client)
        url = f"https://{trial.addresses.kmes['kme-a']}"
        source = Etsi014Source("none", client, url, "gw-a", "gw-b")
        assert await refused(source.status()) is Reason.KME_TLS


@pytest.mark.parametrize("wrong", ["authority", "expired"])
async def test_a_client_certificate_that_does_not_verify_is_refused(config, wrong):
    async with running(config) as trial:
        identity = (
            pki.identity(pki.authority("another CA"), "gw-a")
            if wrong == "authority"
            else pki.identity(pki.authority(), "gw-a", expired=True)
        )
        source = trial.source("gw-a", "gw-b", identity=identity)
        assert await refused(source.status()) is Reason.KME_TLS


@pytest.mark.parametrize("wrong", ["authority", "name"])
async def test_a_kme_that_is_not_the_right_one_is_not_believed(config, wrong):
    async with running(config) as trial:
        options = (
            {"trust": pki.authority("another CA").trust}
            if wrong == "authority"
            else {"server_name": "kme-b"}
        )
        source = trial.source("gw-a", "gw-b", **options)
        assert await refused(source.get_keys(1, 256)) is Reason.KME_TLS


# --- a KME that does not do what it is there for ---------------------------------------------


async def test_a_kme_that_answers_garbage_is_understood_by_nobody_and_recovers(config):
    async with running(config) as trial:
        source = trial.source("gw-a", "gw-b")
        await trial.control(action="garbage", kme="kme-a")
        assert await refused(source.get_keys(1, 256)) is Reason.KME_INVALID_RESPONSE
        assert await refused(source.status()) is Reason.KME_INVALID_RESPONSE
        assert len(await trial.source("gw-b", "gw-a").get_keys(1, 256)) == 1
        await trial.control(action="restore", kme="kme-a")
        assert len(await source.get_keys(1, 256)) == 1


async def test_kmes_out_of_step_give_out_different_keys_until_restored(config):
    async with running(config) as trial:
        a, b = trial.source("gw-a", "gw-b"), trial.source("gw-b", "gw-a")
        for action, alike in (("desync", False), ("restore", True)):
            await trial.control(action=action)
            (taken,) = await a.get_keys(1, 256)
            (found,) = await b.get_keys_by_id([taken.key_id], 256)
            assert (found.key == taken.key) is alike


async def test_a_kme_that_hangs_is_a_timeout_and_recovers(config):
    async with running(config) as trial:
        a = trial.source("gw-a", "gw-b", request_timeout_s=0.2)
        await a.status()
        await trial.control(action="hang", kme="kme-a")
        assert await refused(a.status()) is Reason.KME_TIMEOUT
        await trial.source("gw-b", "gw-a").status()
        patient = trial.source("gw-a", "gw-b")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(patient.status)
            await trial.control(action="restore", kme="kme-a")
        assert (await patient.status()).simulated


async def test_a_killed_kme_refuses_connections_and_comes_back_on_its_port(config):
    async with running(config) as trial:
        a = trial.source("gw-a", "gw-b")
        await a.status()
        answer = await trial.control(action="kill", kme="kme-a")
        assert answer["kmes"] == {"kme-a": "killed", "kme-b": "up"}
        await wait_until_refused(trial.addresses.kmes["kme-a"])
        assert await refused(a.status()) is Reason.KME_UNREACHABLE
        await trial.source("gw-b", "gw-a").status()
        await trial.control(action="restore")
        with trio.fail_after(5):
            while True:
                with contextlib.suppress(KeySourceError):
                    assert (await a.status()).stored_key_count == 200
                    break
                await trio.lowlevel.checkpoint()


async def wait_until_refused(address):
    with trio.fail_after(5), contextlib.suppress(OSError):
        while True:
            await (await trio.open_tcp_stream(address.host, address.port)).aclose()


async def test_killed_and_restored_at_once_it_answers(config):
    async with running(config) as trial:
        for _ in range(3):
            await trial.control(action="kill", kme="kme-b")
            await trial.control(action="restore", kme="kme-b")
        with trio.fail_after(5):
            while True:
                with contextlib.suppress(KeySourceError):
                    await trial.source("gw-b", "gw-a").status()
                    break


async def test_the_control_interface_shows_what_it_does(config):
    async with running(config) as trial:
        assert (await trial.control())["link"] == "up"
        await trial.control(action="degrade", rate_factor=0.5, qber=0.07)
        assert (await trial.source("gw-a", "gw-b").status()).qber == 0.07


async def test_the_control_interface_can_be_a_unix_socket(config, tmp_path):
    path = tmp_path / "control"
    config = dataclasses.replace(config, control=ControlConfig(listen=UnixAddress(str(path))))
    async with running(config) as trial:
        assert trial.addresses.control == UnixAddress(str(path))
        assert path.stat().st_mode & 0o077 == 0
        async with await trio.open_unix_socket(path) as stream:
            await stream.send_all(b"GET /link HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            received = b"".join([part async for part in stream])
        assert json.loads(received.partition(b"\r\n\r\n")[2])["simulated"] is True


@pytest.mark.parametrize(("host", "status"), [("127.0.0.1", 200), ("evil.example", 421)])
async def test_over_tcp_the_control_interface_answers_to_this_machine_only(config, host, status):
    """A page whose own name leads here (DNS rebinding) could read and send what it likes."""
    async with running(config) as trial:
        address = trial.addresses.control
        request = f"POST /events HTTP/1.1\r\nHost: {host}:{address.port}\r\nConnection: close\r\n"
        body = b'{"event":"cut"}'
        request += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        async with await trio.open_tcp_stream(address.host, address.port) as stream:
            await stream.send_all(request.encode() + body)
            received = b"".join([part async for part in stream])
        assert received.startswith(b"HTTP/1.1 %d " % status)
        assert (await trial.control())["link"] == ("cut" if status == 200 else "up")


async def test_without_a_control_address_there_is_no_control_interface(config):
    async with running(dataclasses.replace(config, control=None)) as trial:
        assert trial.addresses.control is None
        await trial.source("gw-a", "gw-b").status()


# --- what does not start ----------------------------------------------------------------------


async def test_a_control_address_others_can_reach_is_refused(config):
    control = ControlConfig(listen=TcpAddress("0.0.0.0", 0))
    with pytest.raises(ConfigError, match="reached from outside"):
        await run_kme_sim(dataclasses.replace(config, control=control))


async def test_anything_but_two_kmes_is_refused(config):
    kmes = {"kme-a": config.kmes["kme-a"]}
    with pytest.raises(ConfigError, match="two KMEs"):
        await run_kme_sim(dataclasses.replace(config, kmes=kmes))


async def test_an_address_in_use_is_one_plain_error(config):
    async with running(config) as trial:
        taken = dataclasses.replace(config.kmes["kme-b"], listen=trial.addresses.kmes["kme-a"])
        with pytest.raises(ConfigError, match="cannot listen on 127"):
            await run_kme_sim(dataclasses.replace(config, kmes={**config.kmes, "kme-b": taken}))


async def test_what_is_refused_is_logged_and_what_is_served_only_for_those_who_debug(
    config, caplog
):
    caplog.set_level(logging.DEBUG, logger="qproxy.sim")
    async with running(config) as trial:
        source = trial.source("gw-a", "gw-b")
        await source.get_keys(1, 256)
        await refused(source.get_keys_by_id(["unknown"], 256))
    told = [r for r in caplog.records if r.getMessage().startswith("request")]
    assert [r.levelno for r in told if "enc_keys" in str(vars(r))] == [logging.DEBUG]
    assert {r.levelno for r in told if "dec_keys" in str(vars(r))} == {logging.INFO}


# --- secrets ----------------------------------------------------------------------------------


async def test_no_key_and_no_key_id_is_logged(config, caplog):
    caplog.set_level(logging.DEBUG)
    async with running(config) as trial:
        a, b = trial.source("gw-a", "gw-b"), trial.source("gw-b", "gw-a")
        (key,) = await a.get_keys(1, 256)
        await b.get_keys_by_id([key.key_id], 256)
        await refused(b.get_keys_by_id([key.key_id], 256))
    import base64

    logged = "\n".join(f"{r.getMessage()} {vars(r)}" for r in caplog.records)
    ours = "\n".join(
        f"{r.getMessage()} {vars(r)}" for r in caplog.records if r.name[:6] == "qproxy"
    )
    assert "enc_keys" in ours
    assert key.key_id not in ours
    for text in (base64.b64encode(key.key).decode(), key.key.hex(), repr(bytes(key.key))):
        assert text not in logged


# --- the timetable --------------------------------------------------------------------------


async def test_what_stands_in_the_timetable_happens_by_itself(config, mock_clock):
    timetable = (
        TimedEvent(30.0, Cut("link")),
        TimedEvent(30.0, Hang("kme-b")),
        TimedEvent(60.0, Restore()),
    )
    async with running(dataclasses.replace(config, timetable=timetable)) as trial:
        seen = []
        for seconds in (0.0, 29.0, 2.0, 28.0, 2.0):
            mock_clock.jump(seconds)
            await trio.testing.wait_all_tasks_blocked()
            answer = await trial.control()
            seen.append((answer["link"], answer["kmes"]["kme-b"]))
    assert seen == [("up", "up")] * 2 + [("cut", "hanging")] * 2 + [("up", "up")]


async def test_an_event_that_cannot_happen_ends_nothing(config, mock_clock):
    timetable = (TimedEvent(1.0, Cut("nowhere")), TimedEvent(2.0, Cut("link")))
    async with running(dataclasses.replace(config, timetable=timetable)) as trial:
        mock_clock.jump(3.0)
        await trio.testing.wait_all_tasks_blocked()
        assert (await trial.control())["link"] == "cut"


# --- a network ------------------------------------------------------------------------------


async def test_keys_travel_over_a_network_of_relays_from_one_kme_to_the_other(config):
    network = network_of(
        [fixed("one", "kme-a", "relay"), fixed("two", "relay", "kme-b")], relays=["relay"]
    )
    async with running(dataclasses.replace(config, network=network)) as trial:
        a, b = trial.source("gw-a", "gw-b"), trial.source("gw-b", "gw-a")
        taken = await a.get_keys(5, 256)
        found = await b.get_keys_by_id([key.key_id for key in taken], 256)
        assert [key.key for key in found] == [key.key for key in taken]
        assert all(key.simulated for key in found)
        assert (await a.status()).key_rate_bps == 2560.0
        url = f"http://{trial.addresses.control}/network"
        answer = json.loads((await trial.control_client.request("GET", url)).body)
        assert answer["spans"]["two"]["used_bits"] == 5 * 256
        assert answer["relays"]["relay"]["keys_passed_on"] == 5

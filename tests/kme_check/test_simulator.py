"""The product's own simulator conforms in all that is checked, and says that it is simulated."""

import contextlib
import dataclasses

import pytest
import trio

from qproxy.address import TcpAddress
from qproxy.config.model import KmeConfig, KmeSimConfig, LinkConfig, PemFiles, SourceEndpoint
from qproxy.config.network import KeyFormatConfig
from qproxy.kme_check.ends import End
from qproxy.kme_check.probe import gather
from qproxy.kme_check.report import Report
from qproxy.kme_check.verdict import Verdict
from qproxy.sim.server import run_kme_sim
from tests import pki
from tests.sim.helpers import fixed, network_of

SAES = {"gw-a": "kme-a", "gw-b": "kme-b"}


@contextlib.asynccontextmanager
async def simulator(directory, link, network=None):
    ca = pki.authority()
    kmes = {}
    for name in ("kme-a", "kme-b"):
        files = pki.write_identity(directory, name, pki.identity(ca, name), ca)
        listen = TcpAddress("127.0.0.1", 0)
        kmes[name] = KmeConfig(
            name=name,
            listen=listen,
            certificate=files.certificate,
            private_key=files.private_key,
            ca=files.ca,
        )
    config = KmeSimConfig(
        path=directory / "sim.yaml", kmes=kmes, saes=SAES, link=link, network=network
    )
    async with trio.open_nursery() as nursery:

        async def start(*, task_status):
            await run_kme_sim(config, task_status=task_status)

        addresses = await nursery.start(start)
        yield [end(directory, addresses, ca, *sae) for sae in (("gw-a", "gw-b"), ("gw-b", "gw-a"))]
        nursery.cancel_scope.cancel()


def end(directory, addresses, ca, local, peer):
    kme = SAES[local]
    files = pki.write_identity(directory, local, pki.identity(ca, local), ca)
    client = PemFiles(files.certificate, files.private_key)
    url = f"https://{addresses.kmes[kme]}"
    endpoint = SourceEndpoint(name=kme, url=url, ca=files.ca, client=client, server_name=kme)
    return End(kme, endpoint, local, peer, connect_timeout_s=5.0, request_timeout_s=5.0)


async def check(ends):
    plans = []
    evidence = await gather(ends, 320, plans.append)
    return Report.of(plans[0], evidence)


LINK = LinkConfig(key_rate_bps=0.0, initial_key_count=100)


@pytest.mark.parametrize(
    "link",
    [
        LINK,
        dataclasses.replace(LINK, max_key_per_request=1),
        dataclasses.replace(LINK, min_key_size_bits=256, max_key_size_bits=256),
        dataclasses.replace(LINK, min_key_size_bits=8, key_size_bits=8, max_key_size_bits=4096),
    ],
    ids=["defaults", "one key at once", "one size only", "many sizes"],
)
async def test_the_simulator_conforms_in_everything(tmp_path, link):
    if link.key_size_bits == 8:
        link = dataclasses.replace(link, initial_key_count=1000)
    async with simulator(tmp_path, link) as ends:
        report = await check(ends)
    told = [(f.check.name, f.outcome.text) for f in report.deviations]
    assert told == []
    assert report.keys_used == report.plan.gives
    assert report.keys_left == 0
    skipped = {f.check.name for f in report.findings if f.outcome.verdict is Verdict.SKIPPED}
    assert skipped <= {"exhaustion", "dec-order", "dec-partial"}


async def test_a_network_with_multicast_conforms_too(tmp_path):
    spans = [fixed("north", "kme-a", "mid"), fixed("south", "mid", "kme-b")]
    network = network_of(spans, relays=["mid"], keys=KeyFormatConfig(max_sae_id_count=2))
    async with simulator(tmp_path, LINK, network) as ends:
        report = await check(ends)
    assert [(f.check.name, f.outcome.text) for f in report.deviations] == []
    assert report.keys_left == 0


async def test_the_simulator_calls_its_keys_simulated(tmp_path):
    async with simulator(tmp_path, LINK) as ends:
        report = await check(ends)
    notes = [f.outcome.text for f in report.findings if f.check.name == "status-extension"]
    assert notes == ["QBER told, key rate told; calls its keys SIMULATED"] * 2

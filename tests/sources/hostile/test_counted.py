"""Every row of the table as the gateway sees it: counted by its reason, and survived."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio

from qproxy.config.model import PeerConfig
from qproxy.errors import Reason
from qproxy.log import get_logger
from qproxy.quantum.health_settings import HealthSettings
from qproxy.runtime.key_path import KeyPath
from tests.runtime.test_qkd import DIALS
from tests.sources.hostile.kme import Kme, client_of
from tests.sources.hostile.table import ROWS, Row
from tests.sources.hostile.test_table import IDS

PATIENT = HealthSettings(probe_timeout_s=5, latency_degraded_s=5)


def path_over(source) -> KeyPath:
    config: PeerConfig = replace(DIALS, link_health=PATIENT, kme_timeout_s=5)
    return KeyPath(
        config, source, "etsi-qkd-014", get_logger("qproxy.test"), now=trio.current_time()
    )


@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
async def test_what_a_kme_does_wrong_is_counted(row: Row, autojump_clock):
    kme = Kme()
    async with client_of(kme) as source:
        path = path_over(source)
        await path._probe(source)
        kme.misbehave = row.answer
        expected: dict[Reason, int] = {}
        for call, reason in (("enc_keys", row.enc), ("dec_keys", row.dec), ("status", row.status)):
            kme.only = call
            if call == "enc_keys":
                await path._draw(source, 2)
                assert (path.stock.available > 0) == (reason is None)
            elif call == "dec_keys":
                redeemed = await path.redeem(IDS)
                assert redeemed == reason if isinstance(redeemed, Reason) else reason is None
            else:
                await path._probe(source)
            if reason is not None:
                expected[reason] = expected.get(reason, 0) + 1
            await trio.testing.wait_all_tasks_blocked()
        assert dict(path.failures.counts) == expected
        assert path.redeemed == (0 if row.dec is not None else 2)

        kme.misbehave = None
        await path._draw(source, 2)
        assert path.stock.available >= 2
        assert dict(path.failures.counts) == expected
        path.stock.close(trio.current_time())

"""Gaps, and the load itself against the service alone."""

import trio

from bench.mixed_load import LONG_STREAMS, MixedLoad
from qproxy.demo.service import serve


async def test_everything_is_verified_and_every_gap_is_seen(nursery):
    _, port = await nursery.start(serve)
    load = MixedLoad(port)
    began_s = load.now_s()
    async with load.running():
        while load.traffic.opened < LONG_STREAMS + 20:
            await trio.sleep(0.01)
    ended_s = load.now_s()
    traffic = load.traffic
    assert (traffic.faults, traffic.failed, traffic.lost_bytes) == ([], 0, 0)
    assert traffic.verified_bytes > 0
    gaps = load.gaps_s(began_s, ended_s)
    assert len(gaps) > LONG_STREAMS
    assert 0 < max(gaps) < ended_s - began_s
    assert 0 < load.longest_quiet_gap_s(began_s, ended_s, ended_s - began_s) == max(gaps)


async def test_silence_is_one_long_gap(nursery):
    _, port = await nursery.start(serve)
    load = MixedLoad(port)
    assert load.gaps_s(1.0, 3.5) == [2.5]

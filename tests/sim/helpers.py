"""Small networks, and SAEs that draw and redeem keys through the KMEs' API without a socket."""

import base64
import json
import random
from pathlib import Path
from urllib.parse import quote

from qproxy.config.model import KmeSimConfig
from qproxy.config.network import FixedSpanConfig, NetworkConfig, RouteConfig
from qproxy.net.http_server import Request
from qproxy.sim.api import KmeApi, Site
from qproxy.sim.build import build_network
from qproxy.sim.timetable import Timetable

SAES = {"gw-a": "kme-a", "gw-b": "kme-b"}


def fixed(name, first, second, **options):
    options = {"key_rate_bps": 2560.0, "initial_buffer_bits": 25_600} | options
    return FixedSpanConfig(name=name, between=(first, second), **options)


def network_of(spans, routes=None, relays=(), **options):
    """A NetworkConfig of fixed spans, with one route between kme-a and kme-b unless given."""
    routes = routes or [RouteConfig(name="main", between=("kme-a", "kme-b"))]
    return NetworkConfig(
        spans={span.name: span for span in spans},
        routes={route.name: route for route in routes},
        relays=tuple(relays),
        **options,
    )


class Trial:
    """A network and its KMEs at a time that the test sets; nothing waits for anything."""

    def __init__(self, config, *, saes=SAES, seed=1):
        if isinstance(config, NetworkConfig):
            kmes = dict.fromkeys(saes.values())
            config = KmeSimConfig(path=Path("test.yaml"), kmes=kmes, saes=saes, network=config)
        self.config = config
        self.now = 0.0
        self.wire = []
        self.modes = []
        self.network = build_network(
            config,
            now=0.0,
            random_bytes=random.Random(seed).randbytes,
            on_mode=lambda *mode: self.modes.append(mode),
            tap=lambda span, sealed: self.wire.append((span, sealed)),
        )
        self.timetable = Timetable(config.timetable, start=0.0)
        self._apis = {kme: KmeApi(Site(kme, config.saes), self.network) for kme in config.kmes}

    def let_pass(self, seconds):
        """Let time go by, and what stands in the timetable happen on its way."""
        until = self.now + seconds
        while (at_s := self.timetable.next_at) is not None and at_s <= until:
            self.now = max(self.now, at_s)
            for timed in self.timetable.due(self.now):
                self.network.apply(timed.event, self.now)
        self.now = until

    def apply(self, event):
        self.network.apply(event, self.now)

    def ask(self, sae, other, call, document=None):
        path = f"/api/v1/keys/{quote(other, safe='')}/{call}"
        method, headers, body = "GET", {}, b""
        if document is not None:
            method, headers = "POST", {"content-type": "application/json"}
            body = json.dumps(document).encode()
        request = Request(method, path, path, "", headers, body)
        response = self._apis[self.config.saes[sae]].handle(sae, request, self.now)
        return response.status, json.loads(response.body)

    def status(self, sae="gw-a", other="gw-b"):
        status, answer = self.ask(sae, other, "status")
        assert status == 200, answer
        return answer

    def draw(self, sae="gw-a", other="gw-b", number=1, size=256):
        """Key IDs and keys, or None where the KME has none."""
        status, answer = self.ask(sae, other, "enc_keys", {"number": number, "size": size})
        assert answer.get("key_container_extension", {"simulated": True})["simulated"] is True
        return read(answer) if status == 200 else None

    def redeem(self, key_ids, sae="gw-b", other="gw-a"):
        """The same at the slave SAE, or None where one of them is not found."""
        wanted = {"key_IDs": [{"key_ID": key_id} for key_id in key_ids]}
        status, answer = self.ask(sae, other, "dec_keys", wanted)
        return read(answer) if status == 200 else None

    def share(self, master="gw-a", slave="gw-b", number=1):
        """Draw at one side, redeem at the other, compare; how many keys both have now."""
        drawn = self.draw(master, slave, number)
        if drawn is None:
            return 0
        assert self.redeem(list(drawn), slave, master) == drawn
        return len(drawn)


def read(answer):
    return {key["key_ID"]: base64.b64decode(key["key"]) for key in answer["keys"]}

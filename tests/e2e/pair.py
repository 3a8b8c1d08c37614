"""A pair of gateways and the simulated KMEs, as separate processes, from configurations on disk."""

from __future__ import annotations

import contextlib
import json
import sys
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tests import pki
from tests.e2e.processes import Fields, Program
from tests.e2e.sockets import Address
from tests.e2e.wire import RecordingRelay

Section = Mapping[str, Any]

KMES = ("kme-a", "kme-b")
#: For peers' sections of tests in which a link heals more than once and it matters not how soon.
QUICK_TO_CLIMB: Section = {
    "link_health": {
        "min_dwell_s": 0.2,
        "good_s": 0.2,
        "max_good_s": 0.4,
        "climb_probe_interval_s": 0.1,
        "max_probe_backoff_s": 0.4,
        "max_trial_backoff_s": 1,
    }
}
RECORDING_KME = Path(__file__).with_name("recording_kme.py")

#: What a gateway writes only when something is wrong with the program itself.
FORBIDDEN_EVENTS = frozenset({"log_lines_dropped", "log_failed", "library_message"})


def write_pki(directory: Path) -> None:
    """Identities of both gateways, both KMEs and a TLS server, all of one authority."""
    directory.mkdir(mode=0o700, exist_ok=True)
    ca = pki.authority()
    for name in ("gw-a", "gw-b"):
        pki.write_identity(directory, name, pki.identity(ca, name), ca)
    for name in KMES:
        pki.write_identity(directory, name, pki.identity(ca, name, "127.0.0.1"), ca)
    server = pki.identity(ca, "localhost", "127.0.0.1")
    pki.write_identity(directory, "server", server, ca)


def merged(base: Section, over: Section) -> dict[str, Any]:
    """``base`` with what ``over`` says, section by section."""
    result = dict(base)
    for key, value in over.items():
        below = result.get(key)
        both = isinstance(value, Mapping) and isinstance(below, Mapping)
        result[key] = merged(below, value) if both else value
    return result


class KmePair:
    """A running ``qproxy kme-sim``.

    Attributes:
        urls: KME name to its URL.
    """

    def __init__(
        self,
        directory: Path,
        *,
        listen: Mapping[str, Address] | None = None,
        link: Section | None = None,
        recording: Path | None = None,
    ) -> None:
        """Start it and wait until it answers.

        Args:
            directory: holds ``pki/``; the configuration is written there.
            listen: address of each KME; a free port by default.
            link: overrides of the simulated link.
            recording: write every key and key ID that is made into this file.
        """
        config = {
            "kme_sim": {
                "kmes": {
                    name: {
                        "listen": (listen or {}).get(name, "127.0.0.1:0"),
                        "certificate": f"pki/{name}.pem",
                        "private_key": f"pki/{name}.key",
                        "ca": "pki/ca.pem",
                    }
                    for name in KMES
                },
                "saes": {"gw-a": "kme-a", "gw-b": "kme-b"},
                "link": dict(link or {}),
                "control": {"listen": "127.0.0.1:0"},
            },
            "log": {"format": "json", "level": "debug"},
        }
        path = directory / "kme-sim.yaml"
        path.write_text(yaml.safe_dump(config, sort_keys=False))
        if recording is None:
            self.program = Program.qproxy("kme-sim", "kme-sim", path)
        else:
            self.program = Program(
                "recording kme-sim", [sys.executable, RECORDING_KME, path, recording]
            )
        try:
            ready = self.program.wait_for_event("kme_sim_ready")
        except BaseException:
            self.program.close()
            raise
        self.addresses: dict[str, Address] = ready["kmes"]
        self.urls = {name: f"https://{address}" for name, address in self.addresses.items()}
        self._control = f"http://{ready['control']}/link"

    def control(self, action: str, **arguments: object) -> Fields:
        """Disturb or restore the link or a KME; gives how things stand afterwards."""
        request = urllib.request.Request(
            self._control,
            json.dumps({"action": action, **arguments}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=10) as response:
            return json.load(response)

    def close(self) -> None:
        self.program.close()


class GatewayPair:
    """Gateway A with listeners, gateway B with services, and what is between them.

    A dials B. Both log JSON. Addresses are free ports, read from the log.

    Attributes:
        a: gateway A, the tunnel's client.
        b: gateway B.
        kme: the simulated KMEs, or None with policy ``off`` or other key sources.
        relay: between A and B, where asked for.
    """

    a: Program
    b: Program

    def __init__(
        self,
        directory: Path,
        *,
        listeners: Section,
        services: Section,
        config_a: Section | None = None,
        config_b: Section | None = None,
        peer: Section | None = None,
        kme: bool = True,
        link: Section | None = None,
        kme_addresses: Mapping[str, Address] | None = None,
        record_keys: Path | None = None,
        relay: bool = False,
        level: str = "info",
    ) -> None:
        """Say what to run; nothing runs before :meth:`start`.

        Args:
            directory: configurations and certificates go here.
            listeners: of A, by name: the service's name, or a listener's section.
            services: of B, by name: an address, or a service's section.
            config_a: overrides of A's configuration, merged section by section.
            config_b: the same for B.
            peer: overrides of the peer's section on both sides.
            kme: start the simulated KMEs; without, the policy is ``off``.
            link: overrides of the simulated link.
            kme_addresses: with ``kme`` False: configure these KMEs although none runs yet.
            record_keys: keep every key and key ID of the KMEs in this file.
            relay: put a recording relay between A and B.
            level: log level of both.
        """
        self.directory = directory
        self.kme: KmePair | None = None
        self.relay: RecordingRelay | None = None
        self._listeners = {
            name: {"listen": "127.0.0.1:0", "peer": "gw-b", "service": name}
            | ({"service": entry} if isinstance(entry, str) else dict(entry))
            for name, entry in listeners.items()
        }
        self._services = {
            name: {"connect": entry} if isinstance(entry, str) else dict(entry)
            for name, entry in services.items()
        }
        self._overrides = {"gw-a": config_a or {}, "gw-b": config_b or {}}
        self._peer = peer or {}
        self._with_kme = kme
        self._link = link
        self._kme_addresses = kme_addresses
        self._record_keys = record_keys
        self._level = level
        self._with_relay = relay
        self._open = contextlib.ExitStack()
        self._programs: list[Program] = []
        write_pki(directory / "pki")

    # Starting and ending.

    def start(self, *, tunnel: bool = True) -> GatewayPair:
        """Start everything, in order, and wait for it; for the tunnel, too, unless told not to."""
        try:
            if self._with_kme:
                self.start_kme()
            self.start_b()
            if self._with_relay:
                self.relay = self._open.enter_context(RecordingRelay())
                self.relay.upstream = self.tunnel_address
            self.start_a()
            if tunnel:
                self.wait_for_tunnel()
        except BaseException:
            self.close()
            raise
        return self

    def start_kme(self, listen: Mapping[str, Address] | None = None) -> KmePair:
        """Start the KMEs; on their old addresses if they ran before."""
        if listen is None:
            listen = self._kme_addresses
        self.kme = KmePair(
            self.directory, listen=listen, link=self._link, recording=self._record_keys
        )
        self._kme_addresses = self.kme.addresses
        self._programs.append(self.kme.program)
        self._open.callback(self.kme.close)
        return self.kme

    def start_b(self) -> Program:
        """Start B; where it ran before, on the same address."""
        listen = getattr(self, "tunnel_address", "127.0.0.1:0")
        config = {
            "tunnel": {"listen": listen},
            "peers": {"gw-a": self._peer_section("kme-b")},
            "services": self._services,
        }
        self.b = self._run("gw-b", "kme-b", config)
        self.tunnel_address: Address = self.b.wait_for_event("gateway_started")["tunnel_listen"][0]
        return self.b

    def start_a(self) -> Program:
        """Start A; a second start gets new listener addresses."""
        address = self.tunnel_address if self.relay is None else self.relay.address
        config = {
            "peers": {"gw-b": {"address": address, **self._peer_section("kme-a")}},
            "listeners": self._listeners,
        }
        self.a = self._run("gw-a", "kme-a", config)
        self._bound = self.a.wait_for_event("gateway_started")["listeners"]
        return self.a

    def wait_for_tunnel(self, *, after_a: int = 0, after_b: int = 0) -> None:
        """Until both ends say that a tunnel is up."""
        try:
            self.a.wait_for_event("tunnel_up", after=after_a)
            self.b.wait_for_event("tunnel_up", after=after_b)
        except AssertionError:
            raise AssertionError(
                f"{self.a.failure('no tunnel')}\n{self.b.failure('no tunnel')}"
            ) from None

    def close(self) -> None:
        """End everything that still runs: all are told, then all are waited for."""
        for program in self._programs:
            program.terminate()
        self._open.close()

    def __enter__(self) -> GatewayPair:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close()
        if kind is None:
            self.check_logs()

    def check_logs(self) -> None:
        """No gateway wrote anything but events, and none that tells of a fault of the program."""
        for program in (self.a, self.b):
            assert program.plain_lines == [], program.failure("wrote what is no event")
            told = {event["event"] for event in program.events}
            assert not told & FORBIDDEN_EVENTS, program.failure(f"wrote {told & FORBIDDEN_EVENTS}")

    # What tests ask.

    def address(self, listener: str) -> Address:
        """Where applications connect."""
        bound: Address = self._bound[listener][0]
        return self._listeners[listener]["listen"] if bound == "unix" else bound

    def config_path(self, gateway: str) -> Path:
        return self.directory / f"{gateway}.yaml"

    # Inside.

    def _peer_section(self, source: str) -> dict[str, Any]:
        quantum = self._kme_addresses is not None
        base = {"key_source": source} if quantum else {"policy": "off"}
        return merged(base, self._peer)

    def _run(self, name: str, source: str, config: Section) -> Program:
        identity = {
            "certificate": f"pki/{name}.pem",
            "private_key": f"pki/{name}.key",
            "ca": "pki/ca.pem",
        }
        base: dict[str, Any] = {
            "node": {"name": name},
            "log": {"format": "json", "level": self._level},
            "identity": identity,
            # Tests end their gateways with connections open; only some of them want to wait.
            "shutdown": {"drain_s": 0},
        }
        if self._kme_addresses is not None:
            url = f"https://{self._kme_addresses[source]}"
            base["key_sources"] = {source: {"type": "etsi-qkd-014", "url": url, **identity}}
        path = self.config_path(name)
        everything = merged(merged(base, config), self._overrides[name])
        path.write_text(yaml.safe_dump(everything, sort_keys=False))
        path.chmod(0o600)
        program = Program.qproxy(name, "run", path)
        self._programs.append(program)
        self._open.callback(program.close)
        return program

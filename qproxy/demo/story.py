"""The order of events: start, load, cut, load, restore, load, end."""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Final

import trio

from qproxy.demo.children import Child
from qproxy.demo.facts import GatewayFacts
from qproxy.demo.heartbeat import FRAME_BYTES, Heartbeat
from qproxy.demo.load import Load
from qproxy.demo.narrator import Narrator, Tone
from qproxy.demo.record import GatewayRecord, HeartbeatRecord, PartRecord, Record, Traffic
from qproxy.demo.report import part_summary
from qproxy.demo.settings import (
    CLIMB_BACK_TIMEOUT_S,
    EPOCHS_TIMEOUT_S,
    FALL_BACK_TIMEOUT_S,
    MB,
    MIN_EPOCHS_PER_PART,
    START_TIMEOUT_S,
    TUNNEL_TIMEOUT_S,
    DemoError,
    DemoOptions,
    Part,
    split_load,
)
from qproxy.demo.workdir import make_pki, write_far_gateway, write_kme_sim, write_near_gateway
from qproxy.modes import Mode
from qproxy.net.http_client import HttpClient, HttpClientError

#: What ends the demonstration early, and its children with it.
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
#: Complaints kept of the service and of the KMEs.
_MAX_COMPLAINTS: Final = 20


def new_record() -> Record:
    """A record of a run that has not begun."""
    return Record(
        near=GatewayRecord(GatewayFacts("gw-a")),
        far=GatewayRecord(GatewayFacts("gw-b")),
        traffic=Traffic(),
        heartbeat=HeartbeatRecord(FRAME_BYTES),
    )


class Story:
    """One run.

    Args:
        options: how much to move.
        directory: where certificates, configurations and logs go.
        record: what is measured.
        narrator: says what happens.
        began_at: the start, in seconds of trio's clock.
    """

    def __init__(
        self,
        options: DemoOptions,
        directory: Path,
        record: Record,
        narrator: Narrator,
        began_at: float,
    ) -> None:
        self._options = options
        self._directory = directory
        self._record = record
        self._narrator = narrator
        self._began_at = began_at
        self._near = self._gateway_child(record.near)
        self._far = self._gateway_child(record.far)
        self._kme_facts: dict[str, str] = {}
        self._service_port: int | None = None
        self._kmes = Child("kme-sim", self._on_kme_event, partial(self._on_stray, "kme-sim"))
        self._service = Child("service", self._on_service_event, partial(self._on_stray, "service"))

    async def run(self) -> None:
        """Run it. Children end with it, however it ends.

        Raises:
            DemoError: it could not go on. In an exception group.
        """
        async with trio.open_nursery() as nursery:
            await nursery.start(self._watch_signals)
            await self._start(nursery)
            heartbeat = Heartbeat(self._record.heartbeat, self._record.traffic, self._began_at)
            await nursery.start(heartbeat.run, self._listener_port())
            await self._acts(Load(self._listener_port(), self._record.traffic))
            await heartbeat.stop()
            self._say("stream", "the long-lived stream ended in order")
            await self._stop()
            nursery.cancel_scope.cancel()

    # Acts.

    async def _start(self, nursery: trio.Nursery) -> None:
        directory = self._directory
        make_pki(directory)
        self._say("files", f"trial certificates and configurations in {directory}")
        await self._spawn(nursery, self._service, ["qproxy.demo.service"])
        await self._spawn(nursery, self._kmes, self._qproxy("kme-sim", write_kme_sim(directory)))
        await self._service.wait_for(
            lambda: self._service_port is not None, START_TIMEOUT_S, "the service is up"
        )
        await self._kmes.wait_for(
            lambda: bool(self._kme_facts), START_TIMEOUT_S, "the KME pair is up"
        )
        self._say("service", f"hashes, echoes and serves data on 127.0.0.1:{self._service_port}")
        self._say("kme-sim", "two KMEs; keys are SIMULATED: random numbers, no photon involved")
        await self._start_gateways(nursery)

    async def _start_gateways(self, nursery: trio.Nursery) -> None:
        directory, near, far = self._directory, self._record.near.facts, self._record.far.facts
        service = f"127.0.0.1:{self._service_port}"
        config = write_far_gateway(directory, kme=self._kme_facts["kme-b"], service=service)
        await self._spawn(nursery, self._far, self._qproxy("run", config))
        await self._far.wait_for(lambda: far.started, START_TIMEOUT_S, "gw-b is up")
        if not far.tunnel_listen:
            raise DemoError("gw-b did not log where it takes tunnels")
        config = write_near_gateway(
            directory, kme=self._kme_facts["kme-a"], peer=far.tunnel_listen[0]
        )
        await self._spawn(nursery, self._near, self._qproxy("run", config))
        await self._both(lambda facts: facts.tunnels_up > 0, TUNNEL_TIMEOUT_S, "the tunnel is up")
        self._say(
            "tunnel",
            f"TLS 1.3 {near.tls_group}, {near.kem} ({near.kem_provider}), {near.aead}",
            Tone.GOOD,
        )
        await self._both(
            lambda facts: facts.link == "healthy", TUNNEL_TIMEOUT_S, "the quantum link is healthy"
        )

    async def _acts(self, load: Load) -> None:
        before, during, after = split_load(self._options)
        await self._part(before, Mode.HYBRID, load)
        await self._cut()
        await self._part(during, Mode.CLASSICAL_ONLY, load)
        await self._restore()
        await self._part(after, Mode.HYBRID, load)

    async def _part(self, part: Part, mode: Mode, load: Load) -> None:
        """Run one part of the load, and go on until enough epochs were committed under it."""
        facts = self._record.near.facts
        epochs_before, by_mode = facts.epoch_count, dict(facts.epochs)
        done = PartRecord(part.name, mode)
        self._record.parts.append(done)
        self._say(
            "load",
            f"{mode}: {(part.up_bytes + part.down_bytes) / MB:.0f} MB"
            f" and {part.connections} short connections",
            Tone.STEP,
        )
        done.up_s = await _timed(load.upload, part.up_bytes)
        done.up_bytes = part.up_bytes
        done.down_s = await _timed(load.download, part.down_bytes)
        done.down_bytes = part.down_bytes
        done.connections_s = await _timed(load.short_connections, part.connections)
        done.connections = part.connections
        done.busy_epochs = facts.epoch_count - epochs_before
        await self._near.wait_for(
            lambda: facts.epoch_count - epochs_before >= MIN_EPOCHS_PER_PART,
            EPOCHS_TIMEOUT_S,
            f"{MIN_EPOCHS_PER_PART} epochs under load",
        )
        done.epochs = facts.epoch_count - epochs_before
        done.modes_seen = [
            name for name, count in facts.epochs.items() if count > by_mode.get(name, 0)
        ]
        self._say("load", part_summary(done))

    async def _cut(self) -> None:
        """No key comes from either KME any more, and both gateways fall back."""
        record = self._record
        for gateway in record.gateways:
            gateway.facts.disturbed = True
        began = record.cut_at_s = self._elapsed_s()
        self._say("link", "CUT: the KMEs make no keys and answer 503", Tone.WARN)
        await self._control({"action": "cut"})
        # What is stored would last for a while; a real outage of the key service looks like this.
        for kme in ("kme-a", "kme-b"):
            await self._control({"action": "unavailable", "kme": kme})
        await self._both(
            lambda facts: facts.mode == Mode.CLASSICAL_ONLY,
            FALL_BACK_TIMEOUT_S,
            "both gateways fall back to classical-only",
        )
        record.fall_back_s = self._last_change_s() - began

    async def _restore(self) -> None:
        """Keys come again, and both gateways climb back."""
        record = self._record
        began = record.restored_at_s = self._elapsed_s()
        self._say("link", "RESTORED: the KMEs make keys again", Tone.GOOD)
        await self._control({"action": "restore"})
        await self._both(
            lambda facts: facts.mode == Mode.HYBRID,
            CLIMB_BACK_TIMEOUT_S,
            "both gateways climb back to hybrid",
        )
        record.climb_back_s = self._last_change_s() - began
        await self._both(
            lambda facts: facts.link == "healthy",
            CLIMB_BACK_TIMEOUT_S,
            "both gateways call the link healthy",
        )
        for gateway in record.gateways:
            gateway.facts.disturbed = False

    async def _stop(self) -> None:
        """The gateways first, the one that dials before the other; then what they used."""
        for child, gateway in ((self._near, self._record.near), (self._far, self._record.far)):
            await child.stop()
            gateway.exit_code, gateway.killed = child.exit_code, child.killed
            self._say(child.name, f"SIGTERM: ended with exit code {child.exit_code}")
        for child in (self._kmes, self._service):
            if not await child.stop():
                self._complain(f"{child.name} did not end in time after SIGTERM and was killed")

    # Parts of acts.

    async def _both(
        self, told: Callable[[GatewayFacts], bool], timeout_s: float, what: str
    ) -> None:
        """Wait until both gateways' logs have told something."""
        deadline = trio.current_time() + timeout_s
        for child, gateway in ((self._near, self._record.near), (self._far, self._record.far)):
            left_s = max(0.0, deadline - trio.current_time())
            await child.wait_for(partial(told, gateway.facts), left_s, what)

    async def _control(self, action: Mapping[str, str]) -> None:
        client = HttpClient(tls=None)
        try:
            url = f"http://{self._kme_facts['control']}/link"
            response = await client.request("POST", url, json=dict(action))
        except HttpClientError as error:
            raise DemoError(f"kme-sim does not do as it is told: {error}") from None
        finally:
            await client.aclose()
        if response.status != 200:
            raise DemoError(f"kme-sim answers {action['action']!r} with status {response.status}")

    async def _spawn(self, nursery: trio.Nursery, child: Child, module: list[str]) -> None:
        log_file = self._directory / f"{child.name}.log"
        await nursery.start(child.run, ["-m", *module], log_file)

    @staticmethod
    def _qproxy(command: str, config: Path) -> list[str]:
        return ["qproxy", command, str(config)]

    @staticmethod
    async def _watch_signals(
        *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        with trio.open_signal_receiver(*_SIGNALS) as signals:
            task_status.started()
            async for number in signals:
                name = signal.Signals(number).name
                raise DemoError(f"interrupted by {name}", hint="every child has been ended")

    def _listener_port(self) -> int:
        addresses = self._record.near.facts.listeners.get("demo", [])
        if not addresses:
            raise DemoError("gw-a did not log where it listens")
        return int(addresses[0].rpartition(":")[2])

    def _last_change_s(self) -> float:
        return max(gateway.facts.mode_changes[-1].at_s for gateway in self._record.gateways)

    # Logs.

    def _gateway_child(self, gateway: GatewayRecord) -> Child:
        facts = gateway.facts

        def on_event(event: Mapping[str, object]) -> None:
            facts.take(event, self._elapsed_s())
            self._tell(facts, event)

        return Child(facts.name, on_event, facts.take_stray)

    def _tell(self, facts: GatewayFacts, event: Mapping[str, object]) -> None:
        match event.get("event"):
            case "mode_changed":
                change = facts.mode_changes[-1]
                tone = Tone.GOOD if change.mode == Mode.HYBRID else Tone.WARN
                text = f"mode {change.mode} from epoch {change.epoch} on ({change.reason})"
                self._say(facts.name, text, tone)
            case "link_state" if facts.mode is not None:
                text = f"quantum link {event.get('new')} ({event.get('reason')})"
                self._say(facts.name, text)

    def _on_kme_event(self, event: Mapping[str, object]) -> None:
        if event.get("event") == "kme_sim_ready":
            kmes = event.get("kmes")
            if isinstance(kmes, dict):
                self._kme_facts = {str(name): str(where) for name, where in kmes.items()}
                self._kme_facts["control"] = str(event.get("control"))
        self._judge("kme-sim", event)

    def _on_service_event(self, event: Mapping[str, object]) -> None:
        port = event.get("port")
        if event.get("event") == "service_ready" and isinstance(port, int):
            self._service_port = port
        self._judge("service", event)

    def _judge(self, name: str, event: Mapping[str, object]) -> None:
        if event.get("level") not in {"debug", "info"}:
            self._complain(f"log of {name}: {event.get('event')} {event.get('error', '')}".rstrip())

    def _on_stray(self, name: str, line: str) -> None:
        self._complain(f"log of {name}: stray line: {line[:200]}")

    def _complain(self, text: str) -> None:
        if len(self._record.service_complaints) < _MAX_COMPLAINTS:
            self._record.service_complaints.append(text)

    def _say(self, who: str, text: str, tone: Tone = Tone.PLAIN) -> None:
        self._narrator.say(who, text, tone)

    def _elapsed_s(self) -> float:
        return trio.current_time() - self._began_at


async def _timed(run: Callable[[int], Awaitable[None]], amount: int) -> float:
    """Run something; how long it took, in seconds."""
    began = trio.current_time()
    await run(amount)
    return trio.current_time() - began

"""A hostile wire between two honest ends, as a machine that Hypothesis drives."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from qproxy.errors import LocalProtocolError, Reason, RemoteProtocolError
from qproxy.modes import Mode, Policy
from qproxy.tunnel.events import DataReceived, EpochCommitted, StreamRequested
from qproxy.tunnel.settings import Role
from tests.tunnel.adversary import other, split_records
from tests.tunnel.bounds import SMALL, check_limits, feed, fixed_size_contexts
from tests.tunnel.helpers import CLIENT, SERVER, make_pair, qkd_keys, with_policy
from tests.tunnel.rules import BOTH


class HostileWire(RuleBasedStateMachine):
    """The wire keeps, drops, repeats, alters and reorders whole records, and the KMEs lie.

    Every piece of application data says under which epoch and mode its sender sent it. Whoever
    receives it must believe the same, and no policy may forbid that mode.
    """

    def __init__(self) -> None:
        super().__init__()
        self.pair = make_pair()
        self.wire: dict[Role, list[bytes]] = {role: [] for role in BOTH}
        self.sent: dict[Role, list[bytes]] = {role: [] for role in BOTH}
        self.policies: dict[Role, Policy] = {}
        self.read: dict[Role, int] = dict.fromkeys(BOTH, 0)
        self.keys = 0
        self.lying = False

    @initialize(
        mine=st.sampled_from(Policy),
        theirs=st.sampled_from(Policy),
        up=st.sampled_from([0, 1, 1, 1]),
    )
    def begin(self, mine: Policy, theirs: Policy, up: int) -> None:
        self.policies = {Role.CLIENT: mine, Role.SERVER: theirs}
        limits = {"max_without_qkd_s": 120, **SMALL}
        self.pair = make_pair(
            with_policy(CLIENT, mine, **limits),
            with_policy(SERVER, theirs, **limits),
            **fixed_size_contexts(),
        )
        honest = self.pair.server_keys
        assert honest is not None
        self.pair.server_keys = lambda needed: (
            qkd_keys(*(key.key_id for key in needed.keys), salt="lie")
            if self.lying
            else honest(needed)
        )
        if up:
            self.pair.pump()
            self.start(Mode.HYBRID)
            self.pair.pump()

    # What the ends do.

    def start(self, mode: Mode) -> None:
        self.keys += 1
        keys = qkd_keys(f"key-{self.keys}") if mode is Mode.HYBRID else []
        try:
            self.pair.start_epoch(mode, keys)
        except LocalProtocolError as error:
            assert error.reason is Reason.POLICY_REQUIRE  # noqa: PT017
            assert Policy.REQUIRE in self.policies.values()
            assert mode is Mode.CLASSICAL_ONLY

    @precondition(lambda self: self.pair.client.epoch_exchange_idle)
    @rule(mode=st.sampled_from(Mode))
    def start_epoch(self, mode: Mode) -> None:
        self.start(mode)
        self.flush()

    @rule(role=st.sampled_from(BOTH))
    def send(self, role: Role) -> None:
        end = self.pair.end(role)
        if not end.established:
            return
        committed = self.pair.of(role, EpochCommitted)[-1]
        number = len(self.sent[role])
        text = f"{number:04} {committed.epoch:04} {committed.epoch_id.hex()} {committed.mode}"
        data = text.ljust(80).encode()
        try:
            taken = end.send_data(self.stream_of(role), memoryview(data))
        except LocalProtocolError:
            return  # The stream went with a GO_AWAY or a reset.
        assert taken == len(data)
        self.sent[role].append(data)
        self.flush()

    def stream_of(self, role: Role) -> int:
        if not self.sent[role]:
            return self.pair.end(role).open_stream("web", now=self.pair.now)
        return 1 if role is Role.CLIENT else 2

    @rule(seconds=st.sampled_from([1.0, 11.0, 40.0]))
    def wait(self, seconds: float) -> None:
        self.pair.now += seconds
        for role in BOTH:
            self.pair.end(role).handle_timeout(self.pair.now)
        self.flush()

    @rule(lying=st.booleans())
    def let_the_kmes_lie(self, lying: bool) -> None:
        self.lying = lying

    # What the wire does.

    def flush(self) -> None:
        for role in BOTH:
            self.pair.collect(role)
            self.wire[role] += split_records(self.pair.take_output(role))

    @rule(sender=st.sampled_from(BOTH), count=st.integers(1, 6))
    def deliver(self, sender: Role, count: int) -> None:
        for _ in range(min(count, len(self.wire[sender]))):
            self.hand_over(sender, self.wire[sender].pop(0))

    @rule()
    def deliver_everything(self) -> None:
        for _ in range(8):
            self.flush()
            for sender in BOTH:
                self.deliver(sender, len(self.wire[sender]))

    @rule(sender=st.sampled_from(BOTH), attack=st.sampled_from(["drop", "repeat", "swap"]))
    def disturb(self, sender: Role, attack: str) -> None:
        records = self.wire[sender]
        if not records:
            return
        if attack == "drop":
            records.pop(0)
        elif attack == "repeat":
            records.insert(0, records[0])
        else:
            records[:2] = records[1::-1]

    @rule(sender=st.sampled_from(BOTH), bit=st.integers(0, 8 * 40))
    def alter(self, sender: Role, bit: int) -> None:
        if self.wire[sender]:
            record = bytearray(self.wire[sender][0])
            record[bit // 8 % len(record)] ^= 1 << bit % 8
            self.wire[sender][0] = bytes(record)

    @rule(sender=st.sampled_from(BOTH))
    def reflect(self, sender: Role) -> None:
        if self.wire[sender]:
            self.wire[other(sender)].insert(0, self.wire[sender][0])

    @rule(role=st.sampled_from(BOTH))
    def cut(self, role: Role) -> None:
        if len(self.sent[Role.CLIENT]) > 6:
            try:
                self.pair.end(role).receive_eof(self.pair.now)
            except RemoteProtocolError:
                self.pair.collect(role)

    def hand_over(self, sender: Role, record: bytes) -> None:
        receiver = other(sender)
        feed(self.pair, receiver, record)
        end = self.pair.end(receiver)
        fresh = self.pair.events[receiver][self.read[receiver] :]
        self.read[receiver] = len(self.pair.events[receiver])
        for event in fresh:
            if isinstance(event, DataReceived):
                self.check_belief(receiver, end, bytes(event.data))
            elif isinstance(event, StreamRequested) and end.established:
                end.accept_stream(event.stream_id)
        self.flush()

    def check_belief(self, receiver: Role, end: Any, data: bytes) -> None:
        """One record carries one piece: what its sender said must be what we believe."""
        _number, epoch, epoch_id, mode = data.decode().split()
        reading = end.epoch - (1 if end._next_opener is not None else 0)
        believed = self.pair.of(receiver, EpochCommitted)[reading - 1]
        assert (int(epoch), epoch_id, mode) == (
            believed.epoch,
            believed.epoch_id.hex(),
            believed.mode,
        )
        if Policy.REQUIRE in self.policies.values():
            assert mode == Mode.HYBRID

    @invariant()
    def what_arrived_is_a_beginning_of_what_was_sent(self) -> None:
        for sender in BOTH:
            received = self.pair.received(other(sender), 1 if sender is Role.CLIENT else 2)
            assert b"".join(self.sent[sender]).startswith(received)

    @invariant()
    def no_policy_is_broken(self) -> None:
        for role in BOTH:
            modes = {event.mode for event in self.pair.of(role, EpochCommitted)}
            if Policy.REQUIRE in self.policies.values():
                assert modes <= {Mode.HYBRID}
        for client, server in zip(
            self.pair.of(Role.CLIENT, EpochCommitted),
            self.pair.of(Role.SERVER, EpochCommitted),
            strict=False,
        ):
            assert (client.epoch_id, client.mode) == (server.epoch_id, server.mode)

    @invariant()
    def memory_stays_within_its_limits(self) -> None:
        check_limits(self.pair)


@pytest.mark.parametrize("examples", [100, pytest.param(300, marks=pytest.mark.slow)])
def test_a_hostile_wire_never_gets_data_accepted_in_a_mode_nobody_agreed_to(examples: int) -> None:
    run_state_machine_as_test(
        HostileWire,
        settings=settings(
            max_examples=examples,
            stateful_step_count=30,
            deadline=None,
            derandomize=True,
            database=None,
        ),
    )


def test_the_hostile_wire_lets_honest_traffic_through() -> None:
    """Without attacks the machine above does carry data through several epochs."""
    machine = HostileWire()
    machine.begin(Policy.PREFER, Policy.OFF, 1)
    for mode in (Mode.CLASSICAL_ONLY, Mode.HYBRID, Mode.CLASSICAL_ONLY):
        for role in BOTH:
            machine.send(role)
        machine.start_epoch(mode)
        machine.deliver(Role.CLIENT, 1)
        for role in BOTH:
            machine.send(role)
        machine.deliver_everything()
        machine.what_arrived_is_a_beginning_of_what_was_sent()
        machine.no_policy_is_broken()
    for role in BOTH:
        stream_id = 2 if role is Role.CLIENT else 1
        assert len(machine.pair.received(role, stream_id)) == 6 * 80

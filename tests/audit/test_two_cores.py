"""The trails of two real cores: what one sent under an epoch, the other received under it."""

import random

import pytest

from qproxy.audit.compare import Story, compare
from qproxy.audit.facts import EndedBy, EpochCommittedFacts, EpochEndedFacts
from qproxy.errors import Reason, RemoteProtocolError
from qproxy.modes import Mode
from qproxy.tunnel.events import (
    EpochCommitted,
    EpochConfirmed,
    EpochFailed,
    PolicyAgreed,
    StreamRequested,
    TunnelClosed,
)
from qproxy.tunnel.settings import Role
from tests.audit.helpers import End, check, seal
from tests.tunnel.helpers import make_pair, qkd_keys

GROUP = "X25519MLKEM768"


class Audited:
    """Two cores wired together record by record, each with its trail."""

    def __init__(self):
        self.pair = make_pair()
        self.pair.server_keys = lambda event: qkd_keys(*(key.key_id for key in event.keys))
        self.ends = {
            Role.CLIENT: End("gw-a", "gw-b", Role.CLIENT),
            Role.SERVER: End("gw-b", "gw-a", Role.SERVER),
        }
        self.seen = {Role.CLIENT: 0, Role.SERVER: 0}
        self.under_way = {Role.CLIENT: b"", Role.SERVER: b""}
        self.keys = 0

    def note(self, role):
        """Give new events to the trail."""
        self.pair.collect(role)
        end, core = self.ends[role], self.pair.end(role)
        events, self.seen[role] = (
            self.pair.events[role][self.seen[role] :],
            len(self.pair.events[role]),
        )
        for event in events:
            match event:
                case EpochCommitted():
                    policy = next(e for e in self.pair.events[role] if isinstance(e, PolicyAgreed))
                    end.facts += end.trail.on_committed(
                        event,
                        connection_id=core.connection_id,
                        tls_group=GROUP,
                        policy_local=policy.local,
                        policy_peer=policy.peer,
                        policy_effective=policy.effective,
                    )
                case EpochConfirmed():
                    end.facts += end.trail.on_confirmed(event)
                case EpochFailed():
                    end.facts += end.trail.on_failed(event, core.connection_id)
                case TunnelClosed():
                    end.facts += end.trail.on_closed(event)

    def fetch(self, role):
        """Take what an end wants to send, and leave it on the wire."""
        self.note(role)
        self.under_way[role] += self.pair.take_output(role)

    def carry(self, role):
        """Deliver one record from the wire. False if none is under way."""
        self.fetch(role)
        wire = self.under_way[role]
        if len(wire) < 5:
            return False
        size = 5 + int.from_bytes(wire[3:5], "big")
        other = Role.SERVER if role is Role.CLIENT else Role.CLIENT
        self.under_way[role] = wire[size:]
        if not self.pair.end(other).closed:
            self.pair.deliver(other, wire[:size])
        self.note(other)
        self.fetch(other)
        return True

    def settle(self):
        while any([self.carry(Role.CLIENT), self.carry(Role.SERVER)]):
            pass

    def start(self):
        self.settle()
        self.rekey(Mode.HYBRID, Reason.INITIAL)
        self.settle()
        stream = self.pair.client.open_stream("web", now=self.pair.now)
        self.settle()
        request = self.pair.last(Role.SERVER, StreamRequested)
        self.pair.server.accept_stream(request.stream_id)
        self.settle()
        return stream

    def rekey(self, mode, reason=Reason.OPERATOR):
        self.keys += 1
        keys = qkd_keys(f"key-{self.keys}") if mode is Mode.HYBRID else ()
        self.pair.start_epoch(mode, keys, reason)

    def stories(self):
        stories = []
        for end in self.ends.values():
            story = Story()
            assert check(seal(end.facts)[0], on_record=story.add).whole
            stories.append(story)
        return stories

    def ended(self, role):
        facts = self.ends[role].facts
        return {fact.epoch: fact for fact in facts if isinstance(fact, EpochEndedFacts)}


@pytest.mark.parametrize("seed", range(6))
def test_two_cores_under_load_and_rekeys_tell_the_same_story(seed):
    chance = random.Random(seed)
    both = Audited()
    stream = both.start()
    client, server = both.pair.client, both.pair.server
    rekeys = 0
    for _ in range(300):
        what = chance.random()
        core, role = chance.choice([(client, Role.CLIENT), (server, Role.SERVER)])
        if what < 0.5:
            count = min(core.sendable(stream), chance.randrange(1, 20_000))
            if count:
                core.send_data(stream, memoryview(bytes(count)))
                both.note(role)
        elif what < 0.9:
            both.carry(role)
            for end in (client, server):
                end.data_consumed(stream, min(1000, end.session.unread), both.pair.now)
        elif rekeys < 4:
            both.settle()
            rekeys += 1
            both.rekey(chance.choice(list(Mode)))
            # Data in both directions while the epoch messages are under way.
            for end, side in ((client, Role.CLIENT), (server, Role.SERVER)):
                end.send_data(stream, memoryview(bytes(min(5000, end.sendable(stream)))))
                both.note(side)
    both.settle()
    client.end(Reason.CLOSED, both.pair.now)
    both.settle()
    report = compare(*both.stories())
    assert report.differences == []
    assert report.remarks == []
    assert report.epochs == rekeys + 1
    assert rekeys
    ended = both.ended(Role.CLIENT)
    assert sum(fact.bytes_sent for fact in ended.values()) == client.session.bytes_sent
    assert sum(fact.bytes_received for fact in ended.values()) == client.session.bytes_received
    assert [fact.ended_by for fact in ended.values()] == [EndedBy.SWITCH] * rekeys + [EndedBy.CLOSE]


@pytest.mark.parametrize("records", range(8))
def test_a_tunnel_cut_at_any_record_of_a_rekey_is_explained_or_agreed(records):
    both = Audited()
    stream = both.start()
    both.pair.server.send_data(stream, memoryview(bytes(3000)))
    both.rekey(Mode.CLASSICAL_ONLY)
    for number in range(records):
        both.pair.client.send_data(stream, memoryview(bytes(100 + number)))
        both.note(Role.CLIENT)
        both.carry(Role.CLIENT)
        if number % 2:
            both.carry(Role.SERVER)
    both.pair.client.send_data(stream, memoryview(bytes(50)))
    both.note(Role.CLIENT)
    for role in Role:
        with pytest.raises(RemoteProtocolError):
            both.pair.end(role).receive_eof(both.pair.now)
        both.note(role)
    report = compare(*both.stories())
    assert report.differences == []
    assert report.remarks  # bytes were under way


@pytest.mark.parametrize("ender", list(Role))
def test_data_under_way_at_an_orderly_end_is_accounted_for(ender):
    both = Audited()
    stream = both.start()
    other = Role.SERVER if ender is Role.CLIENT else Role.CLIENT
    both.pair.end(other).send_data(stream, memoryview(bytes(3000)))
    both.note(other)
    both.pair.end(ender).end(Reason.SHUTDOWN, both.pair.now)
    both.note(ender)
    both.settle()
    assert both.ended(ender)[1].bytes_discarded == 3000
    report = compare(*both.stories())
    assert (report.differences, report.remarks) == ([], [])


def test_data_for_a_stream_that_was_reset_is_accounted_for():
    both = Audited()
    stream = both.start()
    both.pair.server.send_data(stream, memoryview(bytes(3000)))
    both.note(Role.SERVER)
    both.pair.client.reset_stream(stream, Reason.CONNECTION_RESET, both.pair.now)
    both.settle()
    both.rekey(Mode.CLASSICAL_ONLY)
    both.settle()
    ended = both.ended(Role.CLIENT)[1]
    assert (ended.bytes_received, ended.bytes_discarded) == (0, 3000)
    both.pair.client.end(Reason.CLOSED, both.pair.now)
    both.settle()
    report = compare(*both.stories())
    assert (report.differences, report.remarks) == ([], [])


def test_events_carry_the_counters_of_their_own_moment():
    both = Audited()
    stream = both.start()
    both.pair.client.send_data(stream, memoryview(bytes(100)))
    both.rekey(Mode.HYBRID)
    both.settle()
    # Sent after the commit, and handled together with it.
    both.pair.client.send_data(stream, memoryview(bytes(11)))
    committed = both.pair.last(Role.CLIENT, EpochCommitted)
    assert committed.epoch == 2
    assert (committed.traffic.bytes_sent, committed.traffic.streams_opened) == (100, 1)
    both.settle()
    assert both.pair.last(Role.SERVER, EpochCommitted).traffic.bytes_received == 100
    both.pair.client.end(Reason.CLOSED, both.pair.now)
    both.settle()
    assert both.pair.last(Role.CLIENT, TunnelClosed).traffic.bytes_sent == 111


def test_both_ends_name_the_tunnel_alike_once_it_is_offered():
    both = Audited()
    assert both.pair.client.connection_id is None
    both.start()
    name = both.pair.client.connection_id
    assert len(name) == 16
    assert name == both.pair.server.connection_id


def test_keys_are_shown_to_be_the_same_on_both_sides_without_being_named():
    both = Audited()
    both.start()
    digests = [
        next(fact.key_digests for fact in end.facts if isinstance(fact, EpochCommittedFacts))
        for end in both.ends.values()
    ]
    assert digests[0] == digests[1]
    assert len(digests[0]) == 1
    for end in both.ends.values():
        assert b"key-1" not in b"".join(seal(end.facts)[0])

"""The vocabulary of events: what is one, and what is said of what is none."""

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qproxy.sim import events
from qproxy.sim.events import (
    EVENTS,
    Choice,
    Crash,
    Cut,
    Degrade,
    EventError,
    Figure,
    Intercept,
    Jam,
    Misalign,
    Name,
    Restore,
    Skew,
    Store,
    encode_event,
    members_of,
    parse_event,
    word_of,
)


def example(member):
    match member.kind:
        case Name():
            return "north-1"
        case Figure(minimum=minimum, maximum=maximum):
            return (minimum + 3 * maximum) / 4
        case Choice(words=words):
            return list(words)[-1].value


@pytest.mark.parametrize("word", EVENTS)
def test_every_event_is_read_with_all_its_members_and_written_back_the_same(word):
    members = members_of(EVENTS[word])
    if word == "restore":  # one target at a time
        members = members[:1]
    document = {"event": word} | {member.name: example(member) for member in members}
    event = parse_event(document)
    assert (type(event), word_of(event)) == (EVENTS[word], word)
    assert encode_event(event) == document
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(event, members[0].name, "other")


@pytest.mark.parametrize(
    ("document", "event"),
    [
        ({"event": "cut"}, Cut()),
        ({"event": "cut", "span": None}, Cut()),
        ({"event": "jam", "span": "a", "qber": 0.3}, Jam("a", 0.3)),
        ({"event": "intercept", "fraction": 1}, Intercept(1.0)),
        ({"event": "misalign", "error": 0.05, "span": "a"}, Misalign(0.05, "a")),
        ({"event": "degrade", "rate_factor": 0, "qber": 0.2}, Degrade(0.0, 0.2)),
        ({"event": "crash", "kme": "k"}, Crash("k", Store.KEPT)),
        ({"event": "crash", "kme": "k", "store": "lost"}, Crash("k", Store.LOST)),
        ({"event": "skew", "kme": "k", "seconds": -3}, Skew("k", -3.0)),
        ({"event": "restore", "route": "main"}, Restore(route="main")),
    ],
    ids=str,
)
def test_examples(document, event):
    assert parse_event(document) == event
    action = {"action" if name == "event" else name: value for name, value in document.items()}
    assert parse_event(action, word_key="action") == event


@pytest.mark.parametrize(
    ("document", "key", "text"),
    [
        ({}, "event", "expected one of cut, jam"),
        ({"event": "explode"}, "event", "expected one of cut, jam"),
        ({"event": ["cut"]}, "event", "expected one of"),
        ({"event": "compromise"}, "relay", "expected a name of 1 to 64"),
        ({"event": "compromise", "relay": None}, "relay", "expected a name of 1 to 64"),
        ({"event": "cut", "span": ["a"]}, "span", "expected a name"),
        ({"event": "cut", "span": "a b"}, "span", "expected a name"),
        ({"event": "cut", "span": "a" * 65}, "span", "expected a name"),
        ({"event": "cut", "kme": "a"}, "kme", "expected no such member"),
        ({"event": "cut", "\x1b[2J": "a"}, None, "expected no such member"),
        ({"event": "intercept"}, "fraction", "from 0 to 1, got nothing"),
        ({"event": "intercept", "fraction": True}, "fraction", "from 0 to 1"),
        ({"event": "intercept", "fraction": "1"}, "fraction", "from 0 to 1"),
        ({"event": "intercept", "fraction": 10**400}, "fraction", "from 0 to 1"),
        ({"event": "intercept", "fraction": math.nan}, "fraction", "from 0 to 1"),
        ({"event": "misalign", "error": 0.6}, "error", "from 0 to 0.5"),
        ({"event": "jam", "qber": -0.1}, "qber", "from 0 to 0.5"),
        ({"event": "crash", "kme": "k", "store": "gone"}, "store", "one of kept, lost"),
        ({"event": "crash", "kme": "k", "store": {}}, "store", "one of kept, lost"),
        ({"event": "skew", "kme": "k", "seconds": 1e9}, "seconds", "from -86400 to 86400"),
        ({"event": "restore", "kme": "k", "span": "s"}, None, "got kme and span"),
    ],
    ids=str,
)
def test_what_is_no_event_is_refused_with_the_member_it_is_about(document, key, text):
    with pytest.raises(EventError) as caught:
        parse_event(document)
    assert caught.value.key == key
    assert text in caught.value.message
    assert "\x1b" not in str(caught.value)


def test_a_word_nearly_right_gets_a_hint_and_a_wrong_member_the_right_ones():
    with pytest.raises(EventError) as caught:
        parse_event({"event": "intercpt"})
    assert caught.value.hint == "did you mean 'intercept'?"
    with pytest.raises(EventError) as caught:
        parse_event({"event": "degrade", "qbr": 0.1})
    assert caught.value.hint == "it takes rate_factor, qber, span"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=5,
)
WORDS = st.sampled_from([*EVENTS, "event", "span", "kme", "relay", "qber", "store", "seconds"])


@given(st.dictionaries(WORDS | st.text(max_size=8), JSON | WORDS, max_size=5))
def test_any_object_is_an_event_or_an_event_error(document):
    try:
        event = parse_event(document)
    except EventError:
        return
    assert parse_event(encode_event(event)) == event


def test_every_event_says_what_it_does_and_stands_in_the_union():
    assert set(EVENTS.values()) == set(events.Event.__args__)
    for kind in EVENTS.values():
        assert len(kind.__doc__) > 20

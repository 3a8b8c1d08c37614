"""What stands in the timetable happens when it is due, in order, and once."""

from hypothesis import given
from hypothesis import strategies as st

from qproxy.sim.events import Cut, Desync, Drain, Restore, TimedEvent
from qproxy.sim.timetable import Timetable
from tests.sim.helpers import Trial, fixed, network_of


def test_events_come_due_in_order_and_those_of_one_time_in_the_order_given():
    table = Timetable(
        [TimedEvent(5.0, Cut()), TimedEvent(1.0, Desync()), TimedEvent(5.0, Drain())], start=100.0
    )
    assert table.next_at == 101.0
    assert table.due(100.9) == []
    assert table.due(101.0) == [TimedEvent(1.0, Desync())]
    assert table.next_at == 105.0
    assert table.due(1e9) == [TimedEvent(5.0, Cut()), TimedEvent(5.0, Drain())]
    assert table.next_at is None
    assert table.due(1e9) == []


@given(st.lists(st.floats(0, 100), max_size=20), st.lists(st.floats(0, 120), max_size=20))
def test_however_it_is_asked_every_event_comes_once_and_never_early(times, looks):
    table = Timetable([TimedEvent(at_s, Cut()) for at_s in times], start=0.0)
    seen = []
    for now in [*sorted(looks), 200.0]:
        due = table.due(now)
        assert all(timed.at_s <= now for timed in due)
        seen += [timed.at_s for timed in due]
    assert seen == sorted(times)


def test_a_cut_and_a_restored_span_make_no_key_in_between():
    trial = Trial(network_of([fixed("one", "kme-a", "kme-b", initial_buffer_bits=0)]))
    trial.timetable = Timetable(
        [TimedEvent(10.0, Cut("one")), TimedEvent(30.0, Restore(span="one"))], start=0.0
    )
    trial.let_pass(100.0)
    assert trial.status()["stored_key_count"] == 80 * 10

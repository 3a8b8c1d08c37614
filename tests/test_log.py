"""Log lines: readable, one per event, and safe whatever a peer puts into a field."""

import io
import json
import logging
import re
import threading

import pytest

from qproxy.address import TcpAddress, UnixAddress
from qproxy.config.model import LogConfig, LogFormat, LogLevel
from qproxy.errors import KeySourceError, Reason
from qproxy.keys import QkdKey
from qproxy.log import (
    MAX_FIELD_CHARS,
    MAX_FIELDS,
    MAX_QUEUED_LINES,
    StreamWriter,
    TextFormatter,
    close_logging,
    configure_logging,
    escape,
    get_logger,
)
from qproxy.modes import Mode

SECRET = b"do not print this"
HOSTILE = [
    "\n2026-01-01T00:00:00.000Z info tunnel_up peer=forged",
    "\r\nforged",
    "\x1b[2J\x1b]0;title\x07",
    "\x9b31m",
    "\u202egnp.exe",
    "\u2028forged",
    "\x7f\x00\x85",
    "\ud800 lone surrogate",
    'quote" event=forged',
    "apostrophe' event=forged",
    "back\\slash",
    "",
    "a=b c=d",
]


@pytest.fixture
def sink():
    stream = io.StringIO()
    yield stream
    close_logging()


def lines_of(stream, config=None, *, log):
    configure_logging(config or LogConfig(), stream=stream)
    log(get_logger("qproxy.test"))
    close_logging()
    return stream.getvalue().splitlines()


def test_text_line_has_time_level_event_and_fields(sink):
    (line,) = lines_of(
        sink, log=lambda log: log.info("tunnel_up", peer="gw-b", mode=Mode.HYBRID, epoch=3)
    )
    time, rest = line.split(" ", 1)
    assert rest == "info tunnel_up peer=gw-b mode=hybrid epoch=3"
    assert len(time) == len("2026-01-31T12:00:00.123Z")
    assert time.endswith("Z")


def test_json_line_is_one_object(sink):
    config = LogConfig(format=LogFormat.JSON)
    (line,) = lines_of(
        sink,
        config,
        log=lambda log: log.warning("fall_back", reason=Reason.LINK_DOWN, rate=0.5, up=False),
    )
    event = json.loads(line)
    assert event.pop("time").endswith("Z")
    assert event == {
        "level": "warning",
        "event": "fall_back",
        "logger": "qproxy.test",
        "reason": "link_down",
        "rate": 0.5,
        "up": False,
    }


def test_bound_fields_are_on_every_event(sink):
    def log_twice(log):
        bound = log.bind(peer="gw-b")
        bound.info("one")
        bound.info("two", peer="gw-c")

    one, two = lines_of(sink, log=log_twice)
    assert one.endswith("one peer=gw-b")
    assert two.endswith("two peer=gw-c")


@pytest.mark.parametrize("format_", list(LogFormat))
@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_in_its_field_and_on_its_line(sink, format_, text):
    raw = lines_of(
        sink,
        LogConfig(format=format_),
        log=lambda log: log.info(
            text, peer=text, items=[text, {"k": text}], error=OSError(text), **{text: text}
        ),
    )
    (line,) = raw
    assert all(0x20 <= ord(character) <= 0x7E for character in line)
    if format_ is LogFormat.JSON:
        assert json.loads(line)["peer"] == text
    else:
        _time, level, rest = line.split(" ", 2)
        event, *pairs = re.findall(r"""(?:[^ "']|"(?:\\.|[^"\\])*"|'[^']*')+""", rest)
        assert level == "info"
        assert re.fullmatch(r"[A-Za-z0-9_.-]+", event)
        names = [pair.split("=", 1)[0] for pair in pairs]
        assert names[:3] == ["peer", "items", "error"]
        assert len(names) == 4


def test_text_quotes_whatever_could_be_taken_for_more_than_one_value():
    record = logging.LogRecord("qproxy", logging.INFO, "f", 1, "event", None, None)
    record.fields = {"a": 'x" b=y', "c": ["it's", 1]}
    assert TextFormatter().format(record).split(" ", 3)[3] == (
        'a="x\\" b=y" c=\'["it\\u0027s", 1]\''
    )


class Opaque:
    def __repr__(self):
        return SECRET.decode()


@pytest.mark.parametrize("format_", list(LogFormat))
@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (SECRET, "<redacted 17 bytes>"),
        (bytearray(SECRET), "<redacted 17 bytes>"),
        (memoryview(SECRET), "<redacted 17 bytes>"),
        (QkdKey("id", bytearray(SECRET)), "<redacted 17 bytes>"),
        (int.from_bytes(SECRET * 2), "<redacted integer of 271 bits>"),
        pytest.param(1 << 16609, "<redacted integer of 16610 bits>", id="wide"),
        (Opaque(), "<Opaque>"),
        (ValueError(SECRET.decode()), "ValueError"),
        (KeyError(SECRET.decode()), "KeyError"),
    ],
)
def test_secrets_and_unknown_types_are_never_rendered(sink, format_, value, shown):
    (line,) = lines_of(
        sink,
        LogConfig(format=format_, level=LogLevel.DEBUG),
        log=lambda log: log.info("event", value=value, nested=[value, {"deep": (value,)}]),
    )
    assert SECRET.decode() not in line
    assert str(int.from_bytes(SECRET * 2)) not in line
    assert line.count(shown) >= 1
    if format_ is LogFormat.JSON:
        event = json.loads(line)
        assert event["value"] == shown
        assert event["nested"] == [shown, {"deep": [shown]}]


def test_values_of_known_types_read_as_in_the_configuration(sink):
    (line,) = lines_of(
        sink,
        log=lambda log: log.info(
            "event",
            tcp=TcpAddress("::1", 1),
            unix=UnixAddress("/run/x"),
            nothing=None,
            inf=float("inf"),
            error=KeySourceError(Reason.KME_TIMEOUT, "no answer"),
        ),
    )
    assert line.endswith(
        'tcp=[::1]:1 unix=unix:/run/x nothing=null inf=inf error="KeySourceError: no answer"'
    )


def test_fields_are_bounded_in_length_number_and_depth(sink):
    deep: list[object] = []
    for _ in range(100):
        deep = [deep]
    config = LogConfig(format=LogFormat.JSON)
    (line,) = lines_of(
        sink,
        config,
        log=lambda log: log.info(
            "event",
            deep=deep,
            long="x" * 100_000,
            many=list(range(1000)),
            **{f"k{n}": n for n in range(100)},
        ),
    )
    event = json.loads(line)
    assert len(event["long"]) < MAX_FIELD_CHARS + 20
    assert event["long"].endswith(f"...(+{100_000 - MAX_FIELD_CHARS})")
    assert len(event["many"]) == MAX_FIELDS + 1
    assert event["fields_dropped"] == 103 - MAX_FIELDS
    assert json.dumps(event["deep"]).count("[") <= 5
    assert len(line) < 10_000


def test_reserved_names_cannot_be_overwritten(sink):
    config = LogConfig(format=LogFormat.JSON)
    (line,) = lines_of(
        sink, config, log=lambda log: log.info("real", event="forged", level="forged")
    )
    event = json.loads(line)
    assert (event["event"], event["level"]) == ("real", "info")
    assert (event["field_event"], event["field_level"]) == ("forged", "forged")


def test_level_decides_what_is_written(sink):
    def log_all(log):
        for level in LogLevel:
            getattr(log, level.value)(f"at_{level.value}")
        assert not log.is_enabled_for(LogLevel.INFO)
        assert log.is_enabled_for(LogLevel.ERROR)

    lines = lines_of(sink, LogConfig(level=LogLevel.WARNING), log=log_all)
    assert [line.split(" ")[2] for line in lines] == ["at_warning", "at_error"]


@pytest.mark.parametrize(("level", "shown"), [(LogLevel.DEBUG, True), (LogLevel.INFO, False)])
def test_traceback_only_at_debug_on_one_line_and_without_values(sink, level, shown):
    def fail(log):
        try:
            try:
                raise ValueError(SECRET.decode())
            except ValueError as error:
                raise ExceptionGroup("group", [RuntimeError(SECRET.decode())]) from error
        except ExceptionGroup as error:
            log.unexpected("crashed", error, part="test")

    (line,) = lines_of(sink, LogConfig(level=level), log=fail)
    assert "error crashed error=ExceptionGroup part=test" in line
    assert ("in fail" in line) is shown
    assert ("RuntimeError" in line) is shown
    assert ("ValueError" in line) is shown
    assert SECRET.decode() not in line


def test_libraries_are_heard_from_warning_on_only(sink):
    def log_as_library(_log):
        library = logging.getLogger("some.library")
        library.debug("request body: secret")
        library.info("request body: secret")
        library.warning("odd\nthing")

    (line,) = lines_of(sink, LogConfig(level=LogLevel.DEBUG), log=log_as_library)
    assert line.endswith('warning library_message library=some.library text="odd\\nthing"')


class StuckStream(io.StringIO):
    """Takes one write, then no more until it is let go."""

    def __init__(self):
        super().__init__()
        self.entered = threading.Event()
        self.let_go = threading.Event()

    def write(self, text):
        self.entered.set()
        self.let_go.wait()
        return super().write(text)


def test_a_reader_that_stopped_costs_lines_and_never_waits():
    stream = StuckStream()
    configure_logging(LogConfig(), stream=stream)
    log = get_logger("qproxy.test")
    log.info("first")
    assert stream.entered.wait(10)
    for number in range(MAX_QUEUED_LINES + 5):
        log.info("next", number=number)
    stream.let_go.set()
    close_logging()
    lines = stream.getvalue().splitlines()
    assert lines[2].endswith("warning log_lines_dropped count=5")
    assert len(lines) == 1 + MAX_QUEUED_LINES + 1


def test_a_closed_stream_does_not_raise():
    stream = io.StringIO()
    configure_logging(LogConfig(), stream=stream)
    stream.close()
    get_logger("qproxy.test").error("nobody_hears")
    close_logging()


def test_close_twice_and_configure_again():
    first, second = io.StringIO(), io.StringIO()
    configure_logging(LogConfig(), stream=first)
    configure_logging(LogConfig(), stream=second)
    get_logger("qproxy.test").info("event")
    close_logging()
    close_logging()
    assert first.getvalue() == ""
    assert second.getvalue().endswith("info event\n")


def test_a_formatter_that_fails_gives_a_line_and_not_an_exception(sink):
    class Broken(logging.Formatter):
        def format(self, record):
            raise ValueError(SECRET.decode())

    writer = StreamWriter(sink)
    writer.setFormatter(Broken())
    writer.handle(logging.LogRecord("qproxy", logging.INFO, "f", 1, "event", None, None))
    writer.close()
    assert sink.getvalue() == "log_failed error=ValueError\n"


def test_escape_leaves_printable_ascii_alone():
    assert escape("plain text, 100%") == "plain text, 100%"
    assert escape("a\nb\x1b\u202e\\é") == "a\\nb\\x1b\\u202e\\\\\\xe9"


@pytest.mark.parametrize("format_", list(LogFormat))
def test_a_worker_s_number_is_on_every_line(sink, format_):
    configure_logging(LogConfig(format=format_), stream=sink, worker=3)
    get_logger("qproxy.test").info("tunnel_up", peer="gw-b")
    logging.getLogger("library").warning("something")
    close_logging()
    for line in sink.getvalue().splitlines():
        if format_ is LogFormat.JSON:
            assert json.loads(line)["worker"] == 3
        else:
            assert line.split()[3] == "worker=3"
    assert sink.getvalue().count("\n") == 2

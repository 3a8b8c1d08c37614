"""`qproxy kme-sim ctl`: words become events, the network becomes lines, errors are plain."""

import json
import socket
import threading

import pytest

from qproxy.address import TcpAddress, UnixAddress
from qproxy.cli import kme_ctl
from qproxy.cli.kme_options import DEFAULT_CONTROL
from qproxy.cli.local_http import LocalHttpError, exchange
from qproxy.cli.main import main
from qproxy.net.http_server import Request
from qproxy.pki import init_pki
from qproxy.sim.control import Control
from qproxy.sim.events import EVENTS, Crash, Cut, Degrade, Drain, Intercept, Restore, Skew
from tests.sim.helpers import Trial, fixed, network_of


class Simulator:
    """The control interface without a socket; notes the events that reach the network."""

    def __init__(self):
        spans = [fixed("north", "kme-a", "mid"), fixed("south", "mid", "kme-b")]
        self.network = Trial(network_of(spans, relays=["mid"])).network
        self.control = Control(self.network)
        self.addresses, self.events = [], []
        apply = self.network.apply
        self.network.apply = lambda event, now: (self.events.append(event), apply(event, now))

    def exchange(self, address, method, path, document=None):
        self.addresses.append(address)
        headers = {"content-type": "application/json"}
        body = b"" if document is None else json.dumps(document).encode()
        response = self.control.handle(Request(method, path, path, "", headers, body), 0.0)
        return response.status, json.loads(response.body)


@pytest.fixture
def simulator(monkeypatch):
    simulator = Simulator()
    monkeypatch.setattr(kme_ctl, "exchange", simulator.exchange)
    return simulator


def ctl(capsys, *words):
    code = main(["kme-sim", "ctl", *words])
    return code, capsys.readouterr()


@pytest.mark.parametrize(
    ("words", "event"),
    [
        (["cut", "north"], Cut("north")),
        (["cut", "span=north"], Cut("north")),
        (["intercept", "north", "0.3"], Intercept(0.3, "north")),
        (["intercept", "0.3", "north"], Intercept(0.3, "north")),
        (["intercept", "fraction=0.3", "span=north"], Intercept(0.3, "north")),
        (["degrade", "south", "0.5", "0.02"], Degrade(0.5, 0.02, "south")),
        (["degrade", "south", "qber=0.02", "rate_factor=1"], Degrade(1.0, 0.02, "south")),
        (["crash", "kme-a", "lost"], Crash("kme-a", "lost")),
        (["crash", "kme-a"], Crash("kme-a", "kept")),
        (["skew", "kme-b", "seconds=-5"], Skew("kme-b", -5.0)),
        (["drain"], Drain(None)),
        (["restore"], Restore()),
        (["restore", "kme-a"], Restore(kme="kme-a")),
        (["restore", "north"], Restore(span="north")),
        (["restore", "mid"], Restore(relay="mid")),
        (["restore", "main"], Restore(route="main")),
    ],
    ids=str,
)
def test_words_become_an_event(simulator, capsys, words, event):
    code, said = ctl(capsys, *words)
    assert (code, said.err) == (0, "")
    assert simulator.events == [event]


@pytest.mark.parametrize(
    ("words", "error", "hint"),
    [
        (["cutt", "north"], "no event 'cutt'", "did you mean 'cut'?"),
        (["zzz"], "no event 'zzz'", "see 'qproxy kme-sim ctl events'"),
        (["cut", "nort"], "no span called 'nort'", "did you mean 'north'?"),
        (["cut", "zzz"], "no span called 'zzz'", "spans: north, south"),
        (["cut", "north", "x"], "'x' is one word too many", "it takes span"),
        (["cut", "colour=red"], "no member 'colour'", "it takes span"),
        (["cut", "north", "span=south"], "span is given twice", "see"),
        (["intercept", "north"], "fraction: expected a number from 0 to 1, got nothing", "see"),
        (["intercept", "north", "3"], "fraction: expected a number from 0 to 1", "see"),
        (["intercept", "north", "nan"], "fraction: expected a number from 0 to 1", "see"),
        (["intercept", "north", "fraction=" + "1" * 99], "fraction: expected a number", "see"),
        (["intercept", "north", "fraction=x"], "fraction: expected a number from 0 to 1", "see"),
        (["crash", "kme-a", "store=x"], "store: expected one of kept, lost", "see"),
        (["hang"], "kme: expected a name", "see"),
        (["status", "x"], "'status' takes nothing more", "see"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value)[:30],
)
def test_what_cannot_be_understood_is_2_and_nothing_happens(simulator, capsys, words, error, hint):
    code, said = ctl(capsys, *words)
    first, second = said.err.splitlines()
    assert code == 2
    assert first.startswith("error: ")
    assert error in first
    assert second.startswith("hint: ")
    assert hint in second
    assert simulator.events == []


def test_what_only_the_simulator_can_refuse_is_1(simulator, capsys):
    code, said = ctl(capsys, "cut")
    assert code == 1
    assert "answered 400: span: expected one of this network: north, south" in said.err


def test_status_shows_every_part_and_says_simulated_first(simulator, capsys):
    ctl(capsys, "cut", "north")
    code, said = ctl(capsys, "status")
    lines = [" ".join(line.split()) for line in said.out.splitlines()]
    assert code == 0
    assert lines[0] == "SIMULATED network"
    assert lines[3].startswith("north kme-a, mid cut - 0 bit/s 25.6 kbit of")
    assert lines[4].startswith("south mid, kme-b up 1.00 % 2.56 kbit/s 25.6 kbit of")
    assert "mid no 0" in lines
    assert "kme-a up right" in lines
    assert any(line.startswith("main ") and " cut " in line for line in lines)


def test_a_clock_that_is_wrong_is_shown(simulator, capsys):
    ctl(capsys, "skew", "kme-a", "5")
    _, said = ctl(capsys, "skew", "kme-b", "seconds=-1.5")
    assert "kme-a  up    5 s ahead" in said.out
    assert "kme-b  up    1.5 s behind" in said.out


@pytest.mark.parametrize(
    "network",
    [
        {},
        {"spans": []},
        {"spans": {"x": None}, "routes": {"y": {}}, "kmes": {"z": {"clock_skew_s": "a"}}},
        {"spans": {"x\x1b[2J": {"qber": 10**400, "key_rate_bps": -(10**400), "between": 7}}},
    ],
    ids=["empty", "no object", "nothing in it", "wild"],
)
def test_whatever_answers_there_is_shown_or_left_out(monkeypatch, capsys, network):
    monkeypatch.setattr(kme_ctl, "exchange", lambda *_: (200, network))
    code, said = ctl(capsys, "status")
    assert (code, said.out.splitlines()[0]) == (0, "SIMULATED network")
    assert "\x1b" not in said.out


def test_json_is_what_the_simulator_said(simulator, capsys):
    _, said = ctl(capsys, "status", "--json")
    assert json.loads(said.out) == simulator.network.describe(0.0)


def test_every_event_is_listed_with_what_it_takes(capsys):
    code, said = ctl(capsys, "events")
    words = [line.split()[0] for line in said.out.splitlines() if line[:1].strip()]
    assert code == 0
    assert words[: len(EVENTS)] == list(EVENTS)
    assert "intercept fraction=0..1 [SPAN]" in said.out
    assert "crash KME [store=kept|lost]" in said.out


# --- where to ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("control", "address"),
    [
        ("127.0.0.1:9", TcpAddress("127.0.0.1", 9)),
        ("http://127.0.0.1:9/", TcpAddress("127.0.0.1", 9)),
        ("http://[::1]:9", TcpAddress("::1", 9)),
        ("unix:/run/sim.sock", UnixAddress("/run/sim.sock")),
        ("unix:/run/sim.yaml", UnixAddress("/run/sim.yaml")),
        (DEFAULT_CONTROL, TcpAddress("127.0.0.1", 8440)),
    ],
)
def test_the_control_address(simulator, capsys, control, address):
    assert ctl(capsys, "status", "--control", control)[0] == 0
    assert simulator.addresses == [address]


@pytest.mark.parametrize("control", ["10.0.0.1:80", "nonsense", "http://evil.example:80/x"])
def test_another_machine_is_refused(simulator, capsys, control):
    assert ctl(capsys, "status", "--control", control)[0] == 2
    assert simulator.addresses == []


def test_the_address_may_come_from_the_simulators_file(simulator, capsys, tmp_path):
    init_pki(tmp_path / "pki")
    kme = (
        "listen: '127.0.0.1:0', certificate: pki/{0}.pem, private_key: pki/{0}.key, ca: pki/ca.pem"
    )
    kmes = "".join(f"    {n}: {{{kme.format(n)}}}\n" for n in ("kme-a", "kme-b"))
    text = f"kme_sim:\n  kmes:\n{kmes}  saes: {{gw-a: kme-a, gw-b: kme-b}}\n"
    file = tmp_path / "sim.yaml"
    file.write_text(f"{text}  control: {{listen: '127.0.0.1:77'}}\n")
    assert ctl(capsys, "status", "--control", str(file))[0] == 0
    assert simulator.addresses == [TcpAddress("127.0.0.1", 77)]
    file.write_text(text)
    code, said = ctl(capsys, "status", "--control", str(file))
    assert code == 78
    assert "kme_sim.control" in said.err


# --- the exchange itself -----------------------------------------------------------------------


def serve_once(server, answer, received):
    connection, _ = server.accept()
    with connection:
        received.append(connection.recv(65536))
        connection.sendall(answer)


@pytest.mark.parametrize("family", ["tcp", "unix"])
def test_an_exchange_over_tcp_and_over_a_unix_socket(tmp_path, family):
    path = str(tmp_path / "s")
    server = socket.socket(socket.AF_INET if family == "tcp" else socket.AF_UNIX)
    received = []
    with server:
        server.bind(("127.0.0.1", 0) if family == "tcp" else path)
        server.listen()
        address = (
            TcpAddress("127.0.0.1", server.getsockname()[1])
            if family == "tcp"
            else UnixAddress(path)
        )
        answer = b'HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{"ok": 1}'
        thread = threading.Thread(target=serve_once, args=(server, answer, received))
        thread.start()
        assert exchange(address, "POST", "/events", {"event": "cut"}) == (200, {"ok": 1})
        thread.join()
    assert b"POST /events HTTP/1.1" in received[0]
    assert b"Content-Type: application/json" in received[0]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"SSH-2.0-x\r\n\r\n", "does not speak HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]", "answered 200 and no JSON object"),
        (b"HTTP/1.1 500 X\r\nContent-Length: 1\r\n\r\n{", "answered 500 and no JSON object"),
    ],
)
def test_whatever_else_listens_there_is_one_plain_error(answer, said):
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve_once, args=(server, answer, []))
        thread.start()
        with pytest.raises(LocalHttpError, match=said):
            exchange(TcpAddress("127.0.0.1", server.getsockname()[1]), "GET", "/network")
        thread.join()


def test_nobody_there_is_1_with_a_hint(capsys):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    code, said = ctl(capsys, "status", "--control", f"127.0.0.1:{port}")
    assert code == 1
    assert "hint: is 'qproxy kme-sim' running" in said.err


def test_a_file_called_ctl_can_still_be_run(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ctl").write_text("nonsense")
    assert main(["kme-sim", "./ctl"]) == 78

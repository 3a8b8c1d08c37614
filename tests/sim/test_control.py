"""The control interface: every action, and nothing but the actions."""

import json

import pytest

from qproxy.config.model import KmeSimConfig, LinkConfig
from qproxy.net.http_server import Request
from qproxy.sim.build import build_network
from qproxy.sim.control import Control, is_this_machine
from qproxy.sim.network import KmeMode


class Console:
    def __init__(self):
        config = KmeSimConfig(
            path=None,
            kmes={"kme-a": None, "kme-b": None},
            saes={},
            link=LinkConfig(key_rate_bps=256.0, initial_key_count=10),
        )
        self.told = []
        self.network = build_network(
            config, now=0.0, random_bytes=bytes, on_mode=lambda *mode: self.told.append(mode)
        )
        self.control = Control(self.network)

    def ask(
        self,
        method,
        document=None,
        *,
        target="/link",
        body=b"",
        kind="application/json",
        **headers,
    ):
        if document is not None:
            body = json.dumps(document).encode()
        path, _, query = target.partition("?")
        headers |= {"content-type": kind} if kind else {}
        response = self.control.handle(Request(method, target, path, query, headers, body), 0.0)
        return response.status, json.loads(response.body)

    def act(self, **document):
        return self.ask("POST", document)


@pytest.fixture
def console():
    return Console()


def test_get_tells_how_things_stand(console):
    assert console.ask("GET") == (
        200,
        {
            "simulated": True,
            "link": "up",
            "qber": 0.01,
            "key_rate_bps": 256.0,
            "stored_key_count": 10,
            "in_step": True,
            "kmes": {"kme-a": "up", "kme-b": "up"},
        },
    )


def test_the_network_tells_of_every_part_and_is_labelled_simulated(console):
    status, answer = console.ask("GET", target="/network")
    assert (status, answer["simulated"]) == (200, True)
    assert answer["spans"]["link"]["between"] == ["kme-a", "kme-b"]
    assert answer["routes"]["link"]["path"] == ["link"]
    assert answer["kmes"]["kme-a"] == {"mode": "up", "clock_skew_s": 0.0}


@pytest.mark.parametrize(
    ("action", "link", "qber", "rate"),
    [
        ({"action": "cut"}, "cut", None, 0.0),
        ({"action": "jam"}, "jammed", 0.01, 0.0),
        ({"action": "degrade", "rate_factor": 0.5, "qber": 0.05}, "degraded", 0.05, 128.0),
        ({"action": "degrade", "rate_factor": 1, "qber": 0.11}, "aborted", 0.11, 0.0),
        ({"action": "restore"}, "up", 0.01, 256.0),
    ],
    ids=str,
)
def test_actions_on_the_link(console, action, link, qber, rate):
    console.act(action="cut")
    status, answer = console.ask("POST", action)
    assert status == 200
    assert (answer["link"], answer["qber"], answer["key_rate_bps"]) == (link, qber, rate)
    assert console.ask("GET")[1] == answer


def test_drain_empties_the_store(console):
    assert console.act(action="drain")[1]["stored_key_count"] == 0


@pytest.mark.parametrize(
    ("action", "mode"),
    [
        ("hang", KmeMode.HANGING),
        ("unavailable", KmeMode.UNAVAILABLE),
        ("garbage", KmeMode.GARBAGE),
        ("kill", KmeMode.KILLED),
        ("restore", KmeMode.UP),
    ],
)
def test_actions_on_one_kme(console, action, mode):
    status, answer = console.act(action=action, kme="kme-b")
    assert (status, answer["kmes"]) == (200, {"kme-a": "up", "kme-b": mode})
    assert console.told == [("kme-b", mode)]


def test_desync_puts_the_store_out_of_step_until_the_link_is_restored(console):
    assert console.act(action="desync")[1]["in_step"] is False
    assert console.network.routes["link"].in_step is False
    assert console.act(action="restore", kme="kme-a")[1]["in_step"] is False
    assert console.act(action="restore")[1]["in_step"] is True
    assert console.network.routes["link"].in_step is True


def test_restoring_one_kme_leaves_the_link_and_restoring_all_does_not(console):
    console.act(action="cut")
    console.act(action="kill", kme="kme-a")
    console.act(action="hang", kme="kme-b")
    _, answer = console.act(action="restore", kme="kme-a")
    assert (answer["link"], answer["kmes"]) == ("cut", {"kme-a": "up", "kme-b": "hanging"})
    _, answer = console.act(action="restore")
    assert (answer["link"], answer["kmes"]) == ("up", {"kme-a": "up", "kme-b": "up"})


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"action": "explode"},
        {"action": ["cut"]},
        {"action": "cut", "kme": "kme-a"},
        {"action": "drain", "kme": "kme-a"},
        {"action": "desync", "kme": "kme-a"},
        {"action": "garbage"},
        {"action": "hang"},
        {"action": "hang", "kme": "kme-c"},
        {"action": "hang", "kme": ["kme-a"]},
        {"action": "hang", "kme": {}},
        {"action": "cut", "qber": 0.1},
        {"action": "cut", "more": 1},
        {"action": "degrade"},
        {"action": "degrade", "qber": 0.1},
        {"action": "degrade", "rate_factor": 0.1},
        {"action": "degrade", "rate_factor": 2, "qber": 0.1},
        {"action": "degrade", "rate_factor": 0.1, "qber": 0.6},
        {"action": "degrade", "rate_factor": True, "qber": 0.1},
        {"action": "degrade", "rate_factor": "1", "qber": 0.1},
        {"action": "degrade", "rate_factor": 10**400, "qber": 0.1},
        {"action": "degrade", "rate_factor": 0.5, "qber": 0.1, "kme": "kme-a"},
    ],
    ids=str,
)
def test_anything_else_is_refused_and_changes_nothing(console, document):
    before = console.ask("GET")
    status, answer = console.ask("POST", document)
    assert status == 400
    assert set(answer) == {"message"}
    assert console.ask("GET") == before
    assert console.told == []


@pytest.mark.parametrize("body", [b"", b"cut", b"[]", b'{"action":"cut"'])
def test_a_body_that_is_no_json_object_is_refused(console, body):
    assert console.ask("POST", body=body)[0] == 400


@pytest.mark.parametrize("kind", ["", "text/plain", "application/x-www-form-urlencoded"])
def test_a_web_page_cannot_send_an_action(console, kind):
    """A form can send these content types across origins without asking; JSON it cannot."""
    assert console.ask("POST", {"action": "cut"}, kind=kind)[0] == 400
    assert console.ask("GET")[1]["link"] == "up"


def test_other_paths_and_methods_are_refused(console):
    assert console.ask("GET", target="/")[0] == 404
    assert console.ask("POST", {"action": "cut"}, target="/network")[0] == 405
    assert console.ask("GET", target="/link?x=1")[0] == 404
    assert console.ask("DELETE")[0] == 405


# --- events, and who may send them --------------------------------------------------------------


def test_an_event_is_answered_with_the_whole_network(console):
    status, answer = console.ask("POST", {"event": "cut", "span": "link"}, target="/events")
    assert (status, answer["spans"]["link"]["state"]) == (200, "cut")
    assert console.ask("GET", target="/network")[1] == answer
    status, answer = console.ask("POST", {"event": "crash", "kme": "kme-a"}, target="/events")
    assert answer["kmes"]["kme-a"]["mode"] == KmeMode.KILLED
    assert console.told == [("kme-a", KmeMode.KILLED)]


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"event": "cutt"}, "did you mean 'cut'?"),
        ({"event": "cut", "span": "south"}, "span: expected one of this network: link"),
        ({"event": "intercept"}, "fraction: expected a number from 0 to 1, got nothing"),
        ({"action": "cut"}, "expected one of cut, jam"),
    ],
)
def test_what_is_no_event_is_refused_and_says_why(console, document, said):
    status, answer = console.ask("POST", document, target="/events")
    assert status == 400
    assert said in answer["message"]
    assert console.ask("GET")[1]["link"] == "up"


def test_a_page_in_a_browser_is_not_obeyed(console):
    for target, word in (("/events", "event"), ("/link", "action")):
        document = {word: "cut"}
        assert console.ask("POST", document, target=target, origin="http://127.0.0.1")[0] == 403
        assert console.ask("POST", document, target=target, kind="text/plain")[0] == 400
        assert console.ask("OPTIONS", target=target)[0] == 405
    assert console.ask("GET")[1]["link"] == "up"


@pytest.mark.parametrize("target", ["/events", "/network"])
def test_each_resource_has_its_methods(console, target):
    wrong = "GET" if target == "/events" else "POST"
    assert console.ask(wrong, {"event": "cut"}, target=target)[0] == 405
    assert console.ask("POST", {"event": "cut"}, target=f"{target}?x")[0] == 404


@pytest.mark.parametrize(
    ("host", "ours"),
    [
        ("127.0.0.1:8440", True), ("127.9.9.9", True), ("localhost:1", True), ("LOCALHOST.", True),
        ("[::1]:8440", True), ("[::1]", True), (" 127.0.0.1 ", True),
        ("", False), ("evil.example", False), ("evil.example:8440", False), ("10.0.0.1", False),
        ("127.0.0.1.evil.example", False), ("localhost.evil.example", False), ("[::2]", False),
        ("127.0.0.1:", False), ("127.0.0.1:8440:1", False), ("[::1", False), ("127.0.0.1 x", False),
        ("user@127.0.0.1", False), ("2130706433", False), ("0x7f.1", False),
        ("[localhost]x", False),
    ],
)  # fmt: skip
def test_which_hosts_are_this_machine(host, ours):
    assert is_this_machine(host) is ours

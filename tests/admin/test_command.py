"""`qproxy status` against a server that says what a test wants."""

from __future__ import annotations

import datetime as dt
import http.server
import json
import socketserver
import threading

import pytest

from qproxy.admin.assess import assess
from qproxy.admin.document import encode_document, status_document
from qproxy.cli.main import main
from qproxy.pki import init_pki
from tests.admin import made

STATUS = encode_document(
    status_document(
        made.FALLEN_BACK, assess(made.FALLEN_BACK), dt.datetime(2026, 1, 31, tzinfo=dt.UTC)
    )
)
CONFIG = """\
node: {name: gw-a}
identity: {certificate: pki/gw-a.pem, private_key: pki/gw-a.key, ca: pki/ca.pem}
peers:
  gw-b: {address: 127.0.0.1:7444, policy: off}
"""


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(self.server.status if self.path == "/status" else 404)
        self.end_headers()
        self.wfile.write(self.server.body)

    def log_message(self, *_):
        pass

    def address_string(self):
        return "test"


class UnixServer(socketserver.UnixStreamServer):
    server_name, server_port = "localhost", 0


def run(server):
    server.status, server.body = 200, STATUS
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def server():
    yield from run(http.server.HTTPServer(("127.0.0.1", 0), Handler))


@pytest.fixture
def unix_server(tmp_path):
    yield from run(UnixServer(str(tmp_path / "admin.sock"), Handler))


def at(server):
    return f"127.0.0.1:{server.server_address[1]}"


def test_text_for_people(server, capsys):
    assert main(["status", at(server)]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("gw-a: ready, up 1 h 23 min")
    assert "classical-only for 4 min 10 s: kme_unreachable" in said.out
    assert said.err == ""


def test_json_for_programs(server, capsys):
    assert main(["status", "--json", at(server)]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(STATUS)


def test_over_a_unix_socket(unix_server, capsys):
    assert main(["status", f"unix:{unix_server.server_address}"]) == 0
    assert capsys.readouterr().out.startswith("gw-a: ready")


def test_the_address_may_come_from_the_configuration(server, tmp_path, capsys):
    init_pki(tmp_path / "pki")
    config = tmp_path / "gateway.yaml"
    config.write_text(CONFIG)
    assert main(["status", "--config", str(config)]) == 1
    said = capsys.readouterr().err
    assert "has no admin.listen" in said
    assert "hint: add 'admin:" in said
    config.write_text(CONFIG + f"admin: {{listen: '{at(server)}'}}\n")
    assert main(["status", "--config", str(config)]) == 0
    assert capsys.readouterr().out.startswith("gw-a: ready")


@pytest.mark.parametrize("arguments", [[], ["127.0.0.1:1", "--config", "x.yaml"]])
def test_exactly_one_address(arguments, capsys):
    assert main(["status", *arguments]) == 2
    assert "expected either ADDRESS or --config" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (404, b"", "answered with status 404"),
        (200, b"<html>", "did not answer with a status document"),
        (200, b"[]", "did not answer with a status document"),
        (200, b"[" * 100_000, "did not answer with a status document"),
        (200, b'{"schema_version": 99}', "of version 1, got 99"),
    ],
)
def test_other_answers_are_errors(server, status, body, words, capsys):
    server.status, server.body = status, body
    assert main(["status", at(server)]) == 1
    said = capsys.readouterr()
    assert words in said.err
    assert said.out == ""


def test_nobody_there(tmp_path, capsys):
    assert main(["status", f"unix:{tmp_path}/none.sock"]) == 1
    assert "hint: is the gateway running" in capsys.readouterr().err
    assert main(["status", "no-port"]) == 1
    assert "the port is missing" in capsys.readouterr().err


def test_what_a_gateway_says_cannot_speak_to_the_terminal(server, capsys):
    spoilt = json.loads(STATUS)
    spoilt["node"] = "gw\x1b[2J\u202ea"
    server.body = json.dumps(spoilt).encode()
    for arguments in ([], ["--json"]):
        assert main(["status", *arguments, at(server)]) == 0
        assert "\x1b" not in (out := capsys.readouterr().out)
        assert "\u202e" not in out

import json
import os
from pathlib import Path

import pytest

from bench.__main__ import build_parser, main
from bench.children import Child
from bench.generator import Program
from bench.pairs import Kind, Running, Site, all_pairs
from bench.pairs.ghostunnel import Ghostunnel
from bench.pairs.haproxy import HAProxy
from bench.pairs.nginx import MODULES_VARIABLE, NginxStream
from bench.pairs.qproxy import QProxy
from bench.pairs.spiped import Spiped
from bench.pairs.stunnel import Stunnel
from bench.stats import BenchError
from qproxy.config.reader import load_gateway_config, load_kme_sim_config
from qproxy.modes import Aead, Policy
from qproxy.pki import init_pki
from tests.bench.helpers import SleepingPair


@pytest.fixture
def site(tmp_path: Path) -> Site:
    init_pki(tmp_path / "pki")
    return Site.make(tmp_path / "site", tmp_path / "pki", service_port=9)


def test_names_are_unique_and_there_is_a_subject_a_limit_and_peers() -> None:
    pairs = all_pairs()
    assert len({pair.name for pair in pairs}) == len(pairs)
    assert [pair.kind for pair in pairs].count(Kind.LIMIT) == 1
    assert {pair.kind for pair in pairs} == set(Kind)


def test_a_program_that_is_not_installed_is_missing_by_name(monkeypatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr("bench.pairs.base._SERVER_DIRECTORIES", ())
    monkeypatch.delenv("GOBIN", raising=False)
    monkeypatch.setenv("HOME", "/nonexistent")
    for pair in (Stunnel(), HAProxy(), NginxStream(), Ghostunnel(), Spiped()):
        assert pair.missing() == f"{pair.program} is not installed"
    assert QProxy().missing() is None


def test_nginx_without_its_stream_module_is_missing(monkeypatch, tmp_path: Path) -> None:
    fake = tmp_path / "nginx"
    fake.write_text("#!/bin/sh\necho 'nginx version: nginx/1.0' --with-stream=dynamic >&2\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr("bench.pairs.nginx._MODULE_DIRECTORIES", ())
    assert "libnginx-mod-stream" in (NginxStream().missing() or "")
    (tmp_path / "ngx_stream_module.so").touch()
    monkeypatch.setenv(MODULES_VARIABLE, str(tmp_path))
    assert NginxStream().missing() is None


@pytest.mark.parametrize("interval_s", [60.0, 1.0])
def test_qproxy_s_configuration_is_valid_and_demands_the_hybrid_mode(site, interval_s) -> None:
    pair = QProxy(rekey_interval_s=interval_s)
    near = load_gateway_config(Path(pair.near_command(site)[-1]))
    far = load_gateway_config(Path(pair.far_command(site)[-1]))
    kmes = load_kme_sim_config(Path(pair.helper_commands(site)[0][-1]))
    for config in (near, far):
        (peer,) = config.peers.values()
        assert peer.policy is Policy.REQUIRE
        assert peer.aead is Aead.AES_256_GCM
        assert peer.rekey.interval_s == interval_s
    assert str(near.peers["gw-b"].address) == str(far.tunnel.listen)
    assert set(kmes.kmes) == {"kme-a", "kme-b"}


@pytest.mark.parametrize("pair", [Stunnel(), HAProxy(), NginxStream(buffer_bytes=4096)])
def test_peers_demand_tls_1_3_one_cipher_suite_and_certificates_both_ways(site, pair) -> None:
    for command in (pair.near_command(site), pair.far_command(site)):
        text = Path(command[-1]).read_text()
        assert "TLSv1.3" in text
        assert "TLSv1.2" not in text
        assert "TLS_AES_256_GCM_SHA384" in text
        assert str(site.pki / "ca.pem") in text
        verified = ("verifyChain = yes", "verify required", "verify_client on", "ssl_verify on")
        assert any(word in text for word in verified)


def test_ghostunnel_is_found_where_go_installs_programs(monkeypatch, tmp_path: Path) -> None:
    program = tmp_path / "ghostunnel"
    program.write_text("#!/bin/sh\necho rev v1 built with go1.26\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", "/nonexistent")
    assert Ghostunnel().missing() is not None or Ghostunnel().executable() != str(program)
    monkeypatch.setenv("GOBIN", str(tmp_path))
    monkeypatch.setenv("PATH", "/bin:/usr/bin")
    assert Ghostunnel().missing() is None
    assert Ghostunnel().version() == "ghostunnel v1, go1.26"


def test_ghostunnel_checks_names_both_ways(site) -> None:
    assert "--override-server-name gw-b" in " ".join(Ghostunnel().near_command(site))
    assert "--allow-dns gw-a" in " ".join(Ghostunnel().far_command(site))


def test_spiped_is_shown_but_is_no_peer_and_both_ends_share_a_secret_key(site) -> None:
    pair = Spiped()
    assert pair.kind is Kind.OTHER
    near, far = pair.near_command(site), pair.far_command(site)
    (key,) = {command[command.index("-k") + 1] for command in (near, far)}
    assert Path(key).stat().st_mode & 0o777 == 0o600
    assert len(Path(key).read_bytes()) == 32


@pytest.mark.parametrize(
    ("pair", "words"),
    [
        (Stunnel(), ["sessionResume = no"]),
        (HAProxy(), ["no-tls-tickets", "no-ssl-reuse", "tune.ssl.cachesize 0"]),
        (NginxStream(), ["ssl_session_tickets off", "proxy_ssl_session_reuse off"]),
    ],
)
def test_peers_resume_no_sessions(site, pair, words) -> None:
    commands = (pair.near_command(site), pair.far_command(site))
    texts = "".join(Path(command[-1]).read_text() for command in commands)
    assert all(word in texts for word in words)
    assert pair.parameters()["resumption"] == "off"


@pytest.mark.slow
@pytest.mark.parametrize("pair", [Stunnel(), HAProxy(), NginxStream(), Ghostunnel(), Spiped()])
def test_a_real_pair_carries_bytes_and_says_what_it_agreed_on(tmp_path: Path, pair) -> None:
    if pair.missing() is not None:
        pytest.skip(pair.missing())
    init_pki(tmp_path / "pki")
    with Program("service", "127.0.0.1", module="bench.flow") as service:
        port = int(service.read_line(20))
        with (
            pair.running(Site.make(tmp_path / "site", tmp_path / "pki", port)) as running,
            Program("client", module="bench.flow") as client,
        ):
            probe = {"do": "probe", "host": running.host, "port": running.port}
            client.write_line(json.dumps(probe))
            assert "error" not in json.loads(client.read_line(20))
            if pair.kind is Kind.PEER:
                assert running.facts["tls"] == "TLSv1.3"
                assert running.facts["resumed"] == "no"
                assert str(running.facts["cipher"]).startswith("TLS_AES_")


def test_a_pair_at_work_is_two_processes_that_end_with_it(site) -> None:
    with SleepingPair().running(site) as running:
        assert list(running.proxies) == ["far", "near"]
        assert all(child.running for child in running.processes)
        assert set(running.cpu_seconds()) == {"far", "near"}
    assert running.facts == {"mode": "asleep", "ended": 1}


def test_a_proxy_that_died_unnoticed_makes_the_run_fail(site) -> None:
    with (
        pytest.raises(BenchError, match=r"sleeping \(near\) ended with"),
        SleepingPair().running(site) as running,
    ):
        running.proxies["near"].end()


def logged(directory: Path, *events: dict[str, object]) -> Running:
    text = "".join(json.dumps(event) + "\n" for event in events)
    (directory / "words").write_text(text)
    child = Child("near", ["cat", str(directory / "words")], directory / "log")
    child._process.wait()
    return Running(1, proxies={"near": child})


def test_qproxy_s_epochs_come_from_its_log(tmp_path: Path) -> None:
    totals = {"event": "peer_totals", "hybrid_epochs": 7, "classical_epochs": 0, "keys": 7}
    running = logged(tmp_path, {"event": "tunnel_up"}, totals)
    assert QProxy().facts_at_end(running) == {"epochs": 7, "keys": 7}


def test_a_classical_epoch_makes_the_run_fail(tmp_path: Path) -> None:
    totals = {"event": "peer_totals", "hybrid_epochs": 7, "classical_epochs": 1, "keys": 7}
    with pytest.raises(BenchError, match="1 classical epochs"):
        QProxy().facts_at_end(logged(tmp_path, totals))


def test_a_tunnel_that_is_not_hybrid_makes_the_run_fail(tmp_path: Path, site) -> None:
    running = logged(tmp_path, {"event": "tunnel_up", "mode": "classical-only"})
    with pytest.raises(BenchError, match="expected a hybrid tunnel, got classical-only"):
        QProxy().await_tunnel(site, running)


def test_the_command_line_runs_the_chosen_pair_and_writes_its_record(
    tmp_path: Path, capsys
) -> None:
    output = tmp_path / "record.json"
    arguments = ["throughput", "--rounds", "1", "--megabytes", "1", "--pair", "direct TCP"]
    assert main([*arguments, "--output", str(output)]) == 0
    document = json.loads(output.read_text())
    assert [row["name"] for row in document["rows"]] == ["direct TCP"]
    assert len(document["samples"]) == 9
    assert "| direct TCP |" in capsys.readouterr().out


def test_nonsense_is_a_usage_error(capsys) -> None:
    for arguments in (["throughput", "--rounds", "0"], ["throughput", "--pair", "none"], ["x"]):
        with pytest.raises(SystemExit) as stopped:
            build_parser().parse_args(arguments)
        assert stopped.value.code == 2
    capsys.readouterr()

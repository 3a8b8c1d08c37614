"""The command line: exit codes, what is said where, and what is never said."""

import datetime as dt
import signal
import subprocess
import sys
import types

import pytest
import trio

from qproxy import __version__
from qproxy.cli.main import main
from qproxy.config.model import GatewayConfig, KmeSimConfig
from qproxy.errors import ConfigError, KeySourceError, Reason
from qproxy.pki import (
    KeyAlgorithm,
    Validity,
    init_pki,
    issue,
    make_authority,
    make_crl,
)
from qproxy.sources.file import FileSource, make_key_directories

SECRET = "do not print this"
GATEWAY = """\
node: {name: gw-a}
log: {level: LEVEL}
identity: {certificate: pki/gw-a.pem, private_key: pki/gw-a.key, ca: pki/ca.pem}
peers:
  gw-b: {address: 127.0.0.1:7444, key_source: kme-a}
key_sources:
  kme-a:
    type: etsi-qkd-014
    url: https://127.0.0.1:8441
    ca: pki/ca.pem
    certificate: pki/gw-a.pem
    private_key: pki/gw-a.key
listeners:
  web: {listen: 127.0.0.1:8080, peer: gw-b, service: web}
"""
SIM = """\
kme_sim:
  kmes:
    kme-a: {listen: '127.0.0.1:0', certificate: pki/kme-a.pem, private_key: pki/kme-a.key, ca: pki/ca.pem}
    kme-b: {listen: '127.0.0.1:0', certificate: pki/kme-b.pem, private_key: pki/kme-b.key, ca: pki/ca.pem}
  saes: {gw-a: kme-a, gw-b: kme-b}
"""  # noqa: E501


@pytest.fixture
def room(tmp_path):
    init_pki(tmp_path / "pki")
    (tmp_path / "gateway.yaml").write_text(GATEWAY.replace("LEVEL", "info"))
    (tmp_path / "debug.yaml").write_text(GATEWAY.replace("LEVEL", "debug"))
    (tmp_path / "sim.yaml").write_text(SIM)
    return tmp_path


def rewrite(room, old, new):
    path = room / "gateway.yaml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def fake_module(monkeypatch, name, **content):
    module = types.ModuleType(name)
    vars(module).update(content)
    monkeypatch.setitem(sys.modules, name, module)


def fake_gateway(monkeypatch, ending=None):
    """Stand in for the runtime: notes the configuration, then ends as asked."""
    seen = []

    async def run_gateway(config, *, task_status=trio.TASK_STATUS_IGNORED):
        await trio.lowlevel.checkpoint()
        seen.append(config)
        if ending is not None:
            raise ending
        task_status.started()

    fake_module(monkeypatch, "qproxy.runtime.gateway", run_gateway=run_gateway)
    return seen


# --version and usage ---------------------------------------------------------------------------


def test_version_names_everything_a_fault_report_needs(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"qproxy {__version__}"
    assert lines[1].startswith("Python 3.")
    assert lines[2].startswith("OpenSSL ")
    assert lines[3].startswith("liboqs ")


def test_version_loads_neither_trio_nor_oqs_nor_a_tls_stack():
    code = (
        "import sys\nfrom qproxy.cli.main import main\n"
        "try:\n  main(['--version'])\nexcept SystemExit: pass\n"
        "print(sorted({'trio', 'oqs', 'OpenSSL', 'yaml', 'h11'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.splitlines()[-1] == "[]"
    assert done.stderr == ""


def test_liboqs_is_named_where_it_is_and_missed_where_it_is_not(monkeypatch, tmp_path):
    from qproxy.cli import version

    def absent(_path):
        raise OSError

    monkeypatch.setenv("OQS_INSTALL_PATH", str(tmp_path))
    monkeypatch.setattr(
        "ctypes.CDLL",
        lambda path: (
            types.SimpleNamespace(OQS_version=Version())
            if path == str(tmp_path / "lib64" / "liboqs.so")
            else absent(path)
        ),
    )
    assert "liboqs 9.8.7 " in version.version_text()
    monkeypatch.setattr("ctypes.CDLL", absent)
    assert "liboqs not found" in version.version_text()


def test_versions_can_be_told_to_a_user_without_a_home_directory(monkeypatch):
    from qproxy.cli import version

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("OQS_INSTALL_PATH", raising=False)
    monkeypatch.setattr(version.Path, "home", homeless)
    assert version.version_text().startswith(f"qproxy {__version__}")


class Version:
    """A foreign function: takes a result type, gives bytes."""

    restype = None

    def __call__(self):
        return b"9.8.7"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nonsense"],
        ["run"],
        ["run", "a", "b"],
        ["pki"],
        ["pki", "init", "d", "--algorithm", "rsa"],
        ["pki", "init", "d", "--days", "x"],
        ["demo", "--megabytes", "0"],
        ["demo", "--connections", "9" * 5000],
        ["--nonsense"],
    ],
)
def test_wrong_usage_is_2_with_error_and_hint(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    error, hint = capsys.readouterr().err.splitlines()
    assert error.startswith("error: ")
    assert hint.startswith("hint: see 'qproxy")


@pytest.mark.parametrize("command", [[], ["run"], ["check"], ["pki", "init"], ["demo"]])
def test_help_lists_the_exit_codes(command, capsys):
    with pytest.raises(SystemExit) as caught:
        main([*command, "--help"])
    assert caught.value.code == 0
    assert "78 wrong configuration" in " ".join(capsys.readouterr().out.split())


# run, kme-sim, demo ----------------------------------------------------------------------------


def test_run_hands_the_configuration_to_the_gateway(room, monkeypatch):
    seen = fake_gateway(monkeypatch)
    assert main(["run", str(room / "gateway.yaml")]) == 0
    (config,) = seen
    assert isinstance(config, GatewayConfig)
    assert config.node.name == "gw-a"


def test_run_logs_what_check_would_say_and_starts_all_the_same(room, monkeypatch, capfd):
    seen = fake_gateway(monkeypatch)
    rewrite(room, "name: gw-a}", "name: gw-z}")
    (room / "pki" / "gw-a.key").chmod(0o644)
    assert main(["run", str(room / "gateway.yaml")]) == 0
    assert seen
    said = capfd.readouterr().err
    assert "error configuration_problem key=identity.certificate" in said
    assert "warning configuration_warning" in said
    assert "gw-a.key" in said


def test_kme_sim_hands_the_configuration_to_the_simulator(room, monkeypatch):
    seen = []

    async def run_kme_sim(config, *, task_status=trio.TASK_STATUS_IGNORED):
        await trio.lowlevel.checkpoint()
        seen.append(config)

    fake_module(monkeypatch, "qproxy.sim.server", run_kme_sim=run_kme_sim)
    assert main(["kme-sim", str(room / "sim.yaml")]) == 0
    assert isinstance(seen[0], KmeSimConfig)


def test_kme_sim_ends_by_sigterm_with_0(room, monkeypatch):
    ended = []

    async def run_kme_sim(config, *, task_status=trio.TASK_STATUS_IGNORED):
        signal.raise_signal(signal.SIGTERM)
        try:
            await trio.sleep_forever()
        finally:
            ended.append(config)

    fake_module(monkeypatch, "qproxy.sim.server", run_kme_sim=run_kme_sim)
    assert main(["kme-sim", str(room / "sim.yaml")]) == 0
    assert len(ended) == 1


def test_kme_sim_that_fails_is_1(room, monkeypatch, capsys):
    async def run_kme_sim(config, *, task_status=trio.TASK_STATUS_IGNORED):
        await trio.lowlevel.checkpoint()
        raise OSError(98, "Address already in use")

    fake_module(monkeypatch, "qproxy.sim.server", run_kme_sim=run_kme_sim)
    assert main(["kme-sim", str(room / "sim.yaml")]) == 1
    assert capsys.readouterr().err == "error: [Errno 98] Address already in use\n"


def test_demo_gets_its_flags_and_gives_its_result(monkeypatch, tmp_path):
    seen = []

    def run_demo(options):
        seen.append(options)
        return 1

    fake_module(monkeypatch, "qproxy.demo.main", run_demo=run_demo)
    arguments = ["--json", "--megabytes", "5", "--connections", "7", "--keep-dir", str(tmp_path)]
    assert main(["demo", *arguments]) == 1
    assert main(["demo"]) == 1
    full, bare = seen
    assert (full.json, full.megabytes, full.connections, full.keep_dir) == (True, 5, 7, tmp_path)
    assert (bare.json, bare.megabytes, bare.connections, bare.keep_dir) == (False, None, None, None)


@pytest.mark.parametrize("command", ["run", "check", "kme-sim"])
def test_a_wrong_configuration_is_78_with_every_fault(room, command, capsys):
    path = room / "gateway.yaml"
    path.write_text("node: {name: gw-a, kem_provder: x}\nlistners: {}\n")
    assert main([command, str(path)]) == 78
    lines = capsys.readouterr().err.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    if command != "kme-sim":
        assert f"error: {path}:1: node.kem_provder: expected a known key" in lines[0]
        assert lines[1] == "hint: did you mean 'kem_provider'?"
    assert len(errors) >= 3
    assert {line.split(": ")[0] for line in lines} == {"error", "hint"}


def test_a_missing_file_is_78(room, capsys):
    assert main(["run", str(room / "none.yaml")]) == 78
    assert "No such file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("ending", "code", "said"),
    [
        (ConfigError("port is taken", key="tunnel.listen", hint="free it"), 78,
         "error: tunnel.listen: port is taken\nhint: free it\n"),
        (KeySourceError(Reason.KME_TIMEOUT, "no answer"), 1, "error: no answer\n"),
        (OSError(98, "Address already in use"), 1, "error: [Errno 98] Address already in use\n"),
        (ExceptionGroup("g", [ExceptionGroup("h", [ConfigError("a")]), OSError("b")]), 78,
         "error: a\n"),
        (ExceptionGroup("g", [OSError("a"), KeySourceError(Reason.KME_TLS, "b")]), 1,
         "error: a\nerror: b\n"),
        (BrokenPipeError(), 1, ""),
        (KeyboardInterrupt(), 0, ""),
        (BaseExceptionGroup("g", [KeyboardInterrupt()]), 0, ""),
    ],
)  # fmt: skip
def test_how_a_gateway_ends_is_the_exit_code(room, monkeypatch, capsys, ending, code, said):
    monkeypatch.setattr(sys, "stdout", sys.stdout)  # a broken pipe replaces it
    fake_gateway(monkeypatch, ending)
    assert main(["run", str(room / "gateway.yaml")]) == code
    assert capsys.readouterr().err == said


@pytest.mark.parametrize(("name", "debug"), [("gateway.yaml", False), ("debug.yaml", True)])
@pytest.mark.parametrize("grouped", [False, True])
def test_a_fault_of_ours_is_one_line_and_quotes_nothing(
    room, monkeypatch, capsys, name, debug, grouped
):
    fault = ValueError(SECRET)
    fake_gateway(monkeypatch, ExceptionGroup(SECRET, [fault]) if grouped else fault)
    assert main(["run", str(room / name)]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "error: internal error ValueError"
    assert lines[1].startswith("hint: ")
    assert any("run_gateway" in line for line in lines) is debug
    assert len(lines) == 2 or debug
    assert SECRET not in "\n".join(lines)


def test_interrupted_work_is_not_done(monkeypatch, capsys):
    def run_demo(_options):
        raise KeyboardInterrupt

    fake_module(monkeypatch, "qproxy.demo.main", run_demo=run_demo)
    assert main(["demo"]) == 1
    assert capsys.readouterr().err == "error: interrupted\n"


def test_names_in_messages_do_not_reach_the_terminal_raw(tmp_path, capsys):
    assert main(["check", str(tmp_path / "\x1b[2J\n.yaml")]) == 78
    error = capsys.readouterr().err.splitlines()[0]
    assert error.isprintable()
    assert "\\x1b[2J\\n.yaml" in error


# pki init --------------------------------------------------------------------------------------


def test_pki_init_makes_what_it_says_and_warns_of_the_authority(tmp_path, capsys):
    pki = tmp_path / "pki"
    arguments = ["--algorithm", "ml-dsa-65", "--name", "x", "--name", "y", "--dns", "w.example"]
    assert main(["pki", "init", str(pki), *arguments, "--days", "3"]) == 0
    output = capsys.readouterr()
    assert {str(path) for path in pki.rglob("*") if path.is_file()} == set(output.out.splitlines())
    assert (pki / "x.key").exists()
    assert not (pki / "gw-a.key").exists()
    assert output.err.startswith("warning: this authority is for TRIALS")


def test_pki_init_twice_fails(tmp_path, capsys):
    assert main(["pki", "init", str(tmp_path / "pki")]) == 0
    capsys.readouterr()
    assert main(["pki", "init", str(tmp_path / "pki")]) == 1
    error, hint = capsys.readouterr().err.splitlines()
    assert "nothing is ever overwritten" in error
    assert hint.startswith("hint: ")


# check -----------------------------------------------------------------------------------------


def check(room, capsys, name="gateway.yaml"):
    code = main(["check", str(room / name)])
    output = capsys.readouterr()
    return code, output.out, output.err


def test_check_says_what_a_configuration_does(room, capsys):
    code, out, err = check(room, capsys)
    assert (code, err) == (0, "")
    for text in (
        "gateway gw-a",
        "identity: gw-a, until ",
        "peer gw-b: dials 127.0.0.1:7444, 1 tunnel",
        "policy prefer: falls back to classical-only",
        "1 key of 256 bits per epoch from kme-a (ETSI GS QKD 014, https://127.0.0.1:8441)",
        "new keys every 60 s, 64GiB or 4194304 records",
        "listener web: 127.0.0.1:8080 (plaintext) -> service web at gw-b",
        "ok, 0 warnings",
    ):
        assert text in out


def test_check_of_a_simulator(room, capsys):
    (room / "sim.yaml").write_text(SIM + "  control: {listen: '127.0.0.1:8440'}\n")
    code, out, err = check(room, capsys, "sim.yaml")
    assert code == 0
    assert "kme-a: https://127.0.0.1:0 for gw-a" in out
    assert "control: http://127.0.0.1:8440" in out
    assert "protect nothing" in err
    assert "every user of this machine" in err


def replace_identity(room, *, names=("gw-a",), start_days=-1, end_days=100, authority=None):
    now = dt.datetime.now(dt.UTC)
    validity = Validity(now + dt.timedelta(days=start_days), now + dt.timedelta(days=end_days))
    authority = authority or make_authority(KeyAlgorithm.ECDSA_P256, Validity.of_days(400, now))
    issued = issue(authority, names, KeyAlgorithm.ECDSA_P256, validity)
    (room / "pki" / "gw-a.pem").write_bytes(issued.certificate_pem())
    (room / "pki" / "gw-a.key").write_bytes(issued.private_key_pem())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"names": ("gw-x", "gw-y")}, "expected 'gw-a' among its subject alternative names"),
        ({"start_days": -9, "end_days": -1}, "expired on "),
        ({"start_days": 1}, "is not valid before "),
    ],
)
def test_check_refuses_a_certificate_that_peers_would_refuse(room, capsys, change, message):
    replace_identity(room, **change)
    code, out, err = check(room, capsys)
    assert code == 78
    assert "ok" not in out.split()
    assert f"error: {room}/pki/gw-a.pem: identity.certificate: " in err
    assert message in err


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gw-a.pem", "nonsense", "holds no readable certificate"),
        ("gw-a.key", "nonsense", "holds no readable private key"),
        ("ca.pem", "nonsense", "holds no readable certificate"),
        ("gw-a.key", None, "does not belong to the first certificate"),
    ],
)
def test_check_loads_certificates_and_keys(room, capsys, name, content, message):
    other = (room / "pki" / "gw-b.key").read_text()
    (room / "pki" / name).write_text(other if content is None else content)
    code, _out, err = check(room, capsys)
    assert code == 78
    assert message in err


def test_check_finds_an_authority_that_has_expired(room, capsys):
    long_ago = dt.datetime.now(dt.UTC) - dt.timedelta(days=100)
    old = make_authority(KeyAlgorithm.ECDSA_P256, Validity.of_days(10, long_ago))
    (room / "pki" / "ca.pem").write_bytes(old.certificate_pem())
    code, _out, err = check(room, capsys)
    assert code == 78
    assert "identity.ca: expired on" in err


@pytest.mark.parametrize(("age_days", "expected"), [(0, 0), (30, 78)])
def test_check_finds_a_revocation_list_out_of_date(room, capsys, age_days, expected):
    made = dt.datetime.now(dt.UTC) - dt.timedelta(days=age_days)
    authority = make_authority(KeyAlgorithm.ECDSA_P256, Validity.of_days(400, made))
    (room / "pki" / "ca.pem").write_bytes(authority.certificate_pem())
    (room / "pki" / "crl.pem").write_bytes(make_crl(authority, [], Validity.of_days(7, made)))
    rewrite(room, "ca: pki/ca.pem}", "ca: pki/ca.pem, crl: pki/crl.pem}")
    code, _out, err = check(room, capsys)
    assert code == expected
    assert ("out of date" in err) is bool(expected)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("peers:\n", "tunnel: {unsafe_core_dumps: true}\npeers:\n", "core dump would hold keys"),
        ("peers:\n", "tunnel: {unsafe_allow_classical_group: true}\npeers:\n", "X25519MLKEM768"),
        ("service: web}", "service: web, unsafe_allow_remote_plaintext: true}", "over a network"),
        ("key_source: kme-a", "policy: off", "policy off"),
        ("key_source: kme-a", "policy: off", "no peer uses it"),
        ("key_source: kme-a", "key_source: kme-a, kme_timeout_s: 1", "ends requests before"),
        ("listeners:", "services: {s: {connect: '10.0.0.1:80'}}\nlisteners:", "in plaintext"),
        (None, None, None),
    ],
)
def test_check_warns_of_what_is_unwise(room, capsys, old, new, message):
    if message is None:
        path = room / "gateway.yaml"
        path.write_text(path.read_text().partition("listeners:")[0])
        message = "nothing can use the tunnels"
    else:
        rewrite(room, old, new)
    code, out, err = check(room, capsys)
    assert code == 0
    assert any(line.startswith("warning: ") and message in line for line in err.splitlines()), err
    assert "ok, 0" not in out


def test_check_warns_of_a_key_that_others_can_read(room, capsys):
    (room / "pki" / "gw-a.key").chmod(0o640)
    (room / "psk").write_text("5a" * 32)
    (room / "psk").chmod(0o644)
    rewrite(room, "key_source: kme-a", "key_source: kme-a, psk_file: psk")
    code, _out, err = check(room, capsys)
    assert code == 0
    assert f"{room}/pki/gw-a.key can be read or changed by other users (mode 0640)" in err
    assert f"{room}/psk can be read or changed by other users (mode 0644)" in err
    assert f"hint: chmod 600 {room}/pki/gw-a.key" in err


def test_check_warns_of_a_certificate_near_its_end(room, capsys):
    replace_identity(room, end_days=10)
    code, _out, err = check(room, capsys)
    assert code == 0
    assert "gw-a.pem expires on" in err


def test_check_looks_into_a_pad(room, capsys):
    site = room / "keys"
    make_key_directories(site, room / "other", number=3)
    rewrite(room, "key_source: kme-a", "key_source: pad")
    rewrite(room, "listeners:", "  pad: {type: file, directory: keys}\nlisteners:")
    code, out, err = check(room, capsys)
    assert code == 0
    assert "from pad (files in" in out
    assert "a pre-shared pad and no QKD keys" in out
    assert out.count("QKD") == 1
    assert "3 left to dial with, 3 to be dialled" in out
    assert "the pad of pad has 3 keys left for peer gw-b" in err
    rewrite(room, "key_source: pad", "key_source: pad, qkd_key_size_bits: 512")
    code, _out, err = check(room, capsys)
    assert code == 78
    assert "the pad's keys have 256 bits, expected 512" in err
    (site / "slave").chmod(0o755)
    code, _out, err = check(room, capsys)
    assert code == 78
    assert "has mode 0755, expected 0700" in err


def test_check_says_what_several_sources_are_worth(room, capsys):
    kme = "{type: etsi-qkd-014, url: 'https://127.0.0.1:8441', ca: pki/ca.pem, "
    kme += "certificate: pki/gw-a.pem, private_key: pki/gw-a.key}"
    rewrite(
        room,
        "key_source: kme-a",
        "combine: all, combine_at_least: 2, key_sources: "
        "{north: {source: kme-a}, south: {source: kme-s, peer_sae_id: b-south}}",
    )
    rewrite(room, "listeners:", f"  kme-s: {kme}\nlisteners:")
    code, out, err = check(room, capsys)
    assert code == 0
    assert "keys of 2 sources in each epoch; hybrid with at least 2" in out
    assert "north: 1 key of 256 bits per epoch from kme-a (ETSI GS QKD 014" in out
    assert "as SAE gw-a with b-south" in out
    assert "paths north and south both end at https://127.0.0.1:8441" in err
    assert "losing a source means classical-only although another has keys" in err
    assert "no peer uses it" not in err


def test_check_loads_everything_else_that_is_named(room, capsys):
    for name in ("pin.pem", "tls.pem", "svc-ca.pem", "svc.pem", "client-ca.pem"):
        (room / name).write_text("nonsense")
    (room / "keys").mkdir()
    rewrite(room, "key_source: kme-a", "key_source: pad, pinned_certificate: pin.pem")
    rewrite(room, "listeners:", "  pad: {type: file, directory: keys}\nlisteners:")
    rewrite(
        room,
        "service: web}",
        "service: web, tls: {certificate: tls.pem, private_key: pki/gw-a.key, "
        "client_ca: client-ca.pem, client_auth: optional}}\n"
        "services: {s: {connect: '127.0.0.1:1', tls: {ca: svc-ca.pem, certificate: svc.pem, "
        "private_key: pki/gw-a.key}}}",
    )
    code, out, err = check(room, capsys)
    assert code == 78
    for key in (
        "pin.pem: peers.gw-b.pinned_certificate: ",
        "tls.pem: listeners.web.tls.certificate: ",
        "client-ca.pem: listeners.web.tls.ca: ",
        "svc-ca.pem: services.s.tls.ca: ",
        "svc.pem: services.s.tls.certificate: ",
    ):
        assert key in err
    assert "keys of pad are a pre-shared pad, not QKD keys" in err
    assert "key_sources.pad.directory: " in err
    assert "(TLS), client certificates optional" in out


def test_check_needs_the_kem_provider_it_is_told_to_use(room, capsys, monkeypatch):
    def refuse(choice):
        assert choice == "liboqs"
        raise ConfigError("liboqs cannot be used", key="node.kem_provider", hint="install it")

    monkeypatch.setattr("qproxy.cli.preflight.load_kem_provider", refuse)
    rewrite(room, "{name: gw-a}", "{name: gw-a, kem_provider: liboqs}")
    code, _out, err = check(room, capsys)
    assert code == 78
    assert "error: node.kem_provider: liboqs cannot be used\nhint: install it\n" in err


# pad ------------------------------------------------------------------------------------------


async def test_pad_make_writes_two_sites_that_share_their_keys(tmp_path, capsys):
    site_a, site_b = tmp_path / "a", tmp_path / "b"
    assert main(["pad", "make", str(site_a), str(site_b), "--number", "3"]) == 0
    said = capsys.readouterr()
    assert said.out.splitlines() == [str(site_a), str(site_b)]
    assert "no QKD keys" in said.err
    master, slave = FileSource("a", site_a), FileSource("b", site_b)
    keys = await master.get_keys(3, 256)
    same = await slave.get_keys_by_id([key.key_id for key in keys], 256)
    assert [key.key for key in keys] == [key.key for key in same]
    assert not any(key.simulated for key in keys)


@pytest.mark.parametrize(
    ("options", "said"), [(["--number", "0"], "keys"), (["--size-bits", "7"], "size")]
)
def test_pad_make_refuses_what_makes_no_sense(tmp_path, capsys, options, said):
    assert main(["pad", "make", str(tmp_path / "a"), str(tmp_path / "b"), *options]) == 78
    assert said in capsys.readouterr().err


def test_pad_make_never_touches_what_exists(tmp_path, capsys):
    (tmp_path / "a").mkdir()
    assert main(["pad", "make", str(tmp_path / "a"), str(tmp_path / "b")]) == 78
    assert "exists already" in capsys.readouterr().err
    assert not any((tmp_path / "a").iterdir())

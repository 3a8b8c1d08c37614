"""ML-KEM: known answers, what a hostile peer may send, and how a provider is chosen."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from qproxy.crypto import kem
from qproxy.crypto.kem import LiboqsKem, OpenSslKem, load_kem_provider
from qproxy.errors import ConfigError, LocalProtocolError, Reason, RemoteProtocolError
from qproxy.modes import KemAlgorithm, KemProviderChoice

VECTORS = Path(__file__).parent.parent / "vectors"
ALGORITHMS = list(KemAlgorithm)


def known_answers(algorithm: KemAlgorithm) -> list[dict[str, str]]:
    return json.loads((VECTORS / f"{algorithm}-kat.json").read_text())["tests"]


CASES = [
    pytest.param(algorithm, case, id=f"{algorithm}-{case['count']}")
    for algorithm in ALGORITHMS
    for case in known_answers(algorithm)
]


@pytest.fixture(scope="module")
def openssl() -> OpenSslKem:
    provider = load_kem_provider(KemProviderChoice.OPENSSL)
    assert isinstance(provider, OpenSslKem)
    return provider


@pytest.fixture(scope="module")
def liboqs() -> LiboqsKem:
    try:
        provider = load_kem_provider(KemProviderChoice.LIBOQS)
    except ConfigError as error:
        pytest.skip(f"no liboqs here: {error.message}")
    assert isinstance(provider, LiboqsKem)
    return provider


@pytest.fixture(scope="module", params=["openssl", "liboqs"])
def provider(request: pytest.FixtureRequest) -> OpenSslKem | LiboqsKem:
    return request.getfixturevalue(request.param)


def seed_of(case: dict[str, str]) -> bytes:
    return bytes.fromhex(case["d"] + case["z"])


@pytest.mark.parametrize(("algorithm", "case"), CASES)
def test_key_generation_gives_the_known_encapsulation_key(provider, algorithm, case):
    pair = provider.key_pair_from_seed(algorithm, seed_of(case))
    assert pair.encapsulation_key.hex() == case["encapsulation_key"]


@pytest.mark.parametrize(("algorithm", "case"), CASES)
def test_decapsulation_gives_the_known_secret(provider, algorithm, case):
    pair = provider.key_pair_from_seed(algorithm, seed_of(case))
    secret = pair.decapsulate(bytes.fromhex(case["ciphertext"]))
    assert secret.hex() == case["shared_secret"]


@pytest.mark.parametrize(("algorithm", "case"), CASES)
def test_a_wrong_ciphertext_is_rejected_implicitly_with_the_known_secret(provider, algorithm, case):
    pair = provider.key_pair_from_seed(algorithm, seed_of(case))
    secret = pair.decapsulate(bytes.fromhex(case["rejected_ciphertext"]))
    assert secret.hex() == case["rejected_shared_secret"]


@pytest.mark.parametrize(("algorithm", "case"), CASES)
def test_encapsulation_gives_the_known_ciphertext_and_secret(liboqs, algorithm, case):
    secret, ciphertext = liboqs.encapsulate_from_seed(
        algorithm, bytes.fromhex(case["encapsulation_key"]), bytes.fromhex(case["m"])
    )
    assert ciphertext.hex() == case["ciphertext"]
    assert secret.hex() == case["shared_secret"]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_both_ends_get_the_same_secret(provider, algorithm):
    pair = provider.generate(algorithm)
    secret, ciphertext = provider.encapsulate(algorithm, pair.encapsulation_key)
    assert isinstance(secret, bytearray)
    assert len(secret) == 32
    assert len(ciphertext) == kem.SIZES[algorithm].ciphertext
    assert len(pair.encapsulation_key) == kem.SIZES[algorithm].encapsulation_key
    assert pair.decapsulate(ciphertext) == secret
    assert any(secret)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_two_key_pairs_and_two_encapsulations_differ(provider, algorithm):
    first, second = provider.generate(algorithm), provider.generate(algorithm)
    assert first.encapsulation_key != second.encapsulation_key
    one = provider.encapsulate(algorithm, first.encapsulation_key)
    two = provider.encapsulate(algorithm, first.encapsulation_key)
    assert one[0] != two[0]
    assert one[1] != two[1]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_openssl_and_liboqs_understand_each_other_both_ways(openssl, liboqs, algorithm):
    for ours, theirs in ((openssl, liboqs), (liboqs, openssl)):
        pair = ours.generate(algorithm)
        secret, ciphertext = theirs.encapsulate(algorithm, pair.encapsulation_key)
        assert pair.decapsulate(ciphertext) == secret


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_openssl_and_liboqs_reject_a_tampered_ciphertext_alike(openssl, liboqs, algorithm):
    seed = bytes(range(64))
    pairs = [library.key_pair_from_seed(algorithm, seed) for library in (openssl, liboqs)]
    secret, ciphertext = openssl.encapsulate(algorithm, pairs[0].encapsulation_key)
    tampered = bytes([ciphertext[0] ^ 1]) + ciphertext[1:]
    first, second = (pair.decapsulate(tampered) for pair in pairs)
    assert first == second != secret


def malformed(call) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        call()
    assert caught.value.reason is Reason.MALFORMED_MESSAGE


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("delta", [-1, 1, None])
def test_an_encapsulation_key_of_the_wrong_length_is_malformed(provider, algorithm, delta):
    key = provider.generate(algorithm).encapsulation_key
    bad = b"" if delta is None else key[:-1] if delta < 0 else key + b"\0"
    malformed(lambda: provider.encapsulate(algorithm, bad))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("delta", [-1, 1, None])
def test_a_ciphertext_of_the_wrong_length_is_malformed(provider, algorithm, delta):
    pair = provider.generate(algorithm)
    good = bytes(kem.SIZES[algorithm].ciphertext)
    bad = b"" if delta is None else good[:-1] if delta < 0 else good + b"\0"
    malformed(lambda: pair.decapsulate(bad))


def with_coefficient(key: bytes, index: int, value: int) -> bytes:
    """The key with its 12-bit coefficient ``index`` replaced (ByteEncode_12, little-endian)."""
    bits = int.from_bytes(key[:-32], "little")
    bits &= ~(0xFFF << (12 * index))
    bits |= value << (12 * index)
    return bits.to_bytes(len(key) - 32, "little") + key[-32:]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("value", [3329, 3330, 4095])
def test_a_coefficient_that_is_not_reduced_is_malformed(provider, algorithm, value):
    key = provider.generate(algorithm).encapsulation_key
    last = (len(key) - 32) * 8 // 12 - 1
    for index in (0, 1, 255, last):
        bad = with_coefficient(key, index, value)
        malformed(lambda bad=bad: provider.encapsulate(algorithm, bad))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_largest_reduced_coefficient_is_accepted(provider, algorithm):
    key = with_coefficient(provider.generate(algorithm).encapsulation_key, 0, kem.MODULUS - 1)
    secret, _ = provider.encapsulate(algorithm, key)
    assert len(secret) == 32


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_key_of_the_other_parameter_set_is_malformed(provider, algorithm):
    (other,) = set(ALGORITHMS) - {algorithm}
    key = provider.generate(other).encapsulation_key
    malformed(lambda: provider.encapsulate(algorithm, key))


def test_a_wiped_key_pair_decapsulates_no_more(provider):
    pair = provider.generate(KemAlgorithm.ML_KEM_768)
    _, ciphertext = provider.encapsulate(KemAlgorithm.ML_KEM_768, pair.encapsulation_key)
    pair.wipe()
    pair.wipe()
    with pytest.raises(LocalProtocolError):
        pair.decapsulate(ciphertext)


def test_wiping_overwrites_the_private_half(liboqs):
    pair = liboqs.generate(KemAlgorithm.ML_KEM_768)
    private = pair._private_key
    assert any(private)
    pair.wipe()
    assert len(private) == 2400
    assert not any(private)


def test_a_seed_of_the_wrong_length_is_a_bug_of_ours(provider):
    with pytest.raises(LocalProtocolError):
        provider.key_pair_from_seed(KemAlgorithm.ML_KEM_768, bytes(63))


def test_no_secret_in_a_repr(provider):
    pair = provider.key_pair_from_seed(KemAlgorithm.ML_KEM_768, bytes(range(64)))
    assert bytes(range(8)).hex() not in repr(pair)
    assert "x00" not in repr(pair)


def test_the_name_tells_library_and_version(openssl):
    library, version = openssl.name.split()
    assert library == "OpenSSL"
    assert version[0].isdigit()


def test_liboqs_tells_its_version(liboqs):
    assert liboqs.name.startswith("liboqs 0.")


def test_auto_takes_liboqs_where_it_is(liboqs):
    assert load_kem_provider(KemProviderChoice.AUTO).name == liboqs.name


# --- choosing a provider, each in a process of its own ---------------------------------------

REPORT = """
import sys
from qproxy.crypto.kem import load_kem_provider
from qproxy.errors import ConfigError
from qproxy.modes import KemProviderChoice
try:
    name = load_kem_provider(KemProviderChoice(sys.argv[1])).name
except ConfigError as error:
    name = f"{error.key}|{error.message}|{error.hint}"
sys.stderr.write(f"{name}#{'oqs' in sys.modules}#{'oqs.oqs' in sys.modules}")
"""
NO_SYSTEM_LIBRARY = "import ctypes.util\nctypes.util.find_library = lambda name: None\n"
#: A git that would tell if anybody called it, first in PATH.
TRAP = "#!/bin/sh\ntouch {marker}\nexit 1\n"


@pytest.fixture
def choose(tmp_path):
    """Run ``load_kem_provider`` in a process where no liboqs can be found."""
    trap = tmp_path / "bin"
    trap.mkdir()
    marker = tmp_path / "called"
    for program in ("git", "cmake"):
        (trap / program).write_text(TRAP.format(marker=marker))
        (trap / program).chmod(0o755)

    def run(choice: str, prelude: str = NO_SYSTEM_LIBRARY, **environment: str) -> list[str]:
        variables = {
            **os.environ,
            "HOME": str(tmp_path),
            "OQS_INSTALL_PATH": str(tmp_path / "absent"),
            "PATH": f"{trap}:{os.environ.get('PATH', '')}",
            **environment,
        }
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", prelude + REPORT, choice],
            env=variables,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert done.stdout == ""
        assert not marker.exists()
        return done.stderr.split("#")

    return run


def test_auto_without_the_library_uses_openssl_imports_no_oqs_and_prints_nothing(choose):
    name, package, module = choose("auto")
    assert name.startswith("OpenSSL ")
    assert (package, module) == ("False", "False")


def test_liboqs_without_the_library_is_a_config_error_with_a_hint(choose):
    name, package, _ = choose("liboqs")
    key, message, hint = name.split("|")
    assert key == "node.kem_provider"
    assert "not found" in message
    assert "OQS_INSTALL_PATH" in hint
    assert package == "False"


def test_openssl_is_used_when_asked_for(choose):
    name, package, _ = choose("openssl")
    assert name.startswith("OpenSSL ")
    assert package == "False"


def test_a_library_that_is_no_liboqs_is_not_used(choose):
    prelude = "import ctypes.util\n"  # the C library is loadable everywhere, and no liboqs
    prelude += "real = ctypes.util.find_library\n"
    prelude += "ctypes.util.find_library = lambda name: real('c') if name == 'oqs' else None\n"
    name, package, _ = choose("liboqs", prelude)
    assert "is not a liboqs library" in name
    assert package == "False"
    name, package, _ = choose("auto", prelude)
    assert name.startswith("OpenSSL ")
    assert package == "False"


def test_a_liboqs_of_another_version_is_not_used(liboqs, choose):
    prelude = NO_SYSTEM_LIBRARY + "import importlib.metadata\n"
    prelude += "importlib.metadata.version = lambda name: '0.99.0'\n"
    name, package, _ = choose("liboqs", prelude, OQS_INSTALL_PATH=str(install_path()))
    assert "is version" in name
    assert "0.99.0" in name
    assert package == "False"


def test_liboqs_is_loaded_without_printing_or_warning(liboqs, choose):
    name, package, _ = choose("auto", "", **library_environment())
    assert name == liboqs.name
    assert package == "True"


def install_path() -> Path:
    """The directory liboqs was found under, or skip where it is the system's."""
    configured = os.environ.get("OQS_INSTALL_PATH")
    root = Path(configured) if configured else Path.home() / "_oqs"
    if not any((root / directory / "liboqs.so").exists() for directory in ("lib", "lib64")):
        pytest.skip("liboqs is the system's, so its search cannot be redirected")
    return root


def library_environment() -> dict[str, str]:
    configured = os.environ.get("OQS_INSTALL_PATH")
    root = Path(configured) if configured else Path.home() / "_oqs"
    return {"OQS_INSTALL_PATH": str(root)}


# --- the search itself -----------------------------------------------------------------------


def test_the_search_is_that_of_liboqs_python(monkeypatch, tmp_path):
    monkeypatch.setattr(kem.platform, "system", lambda: "Linux")
    monkeypatch.setattr(kem.ctypes.util, "find_library", lambda name: f"{name}.so.9")
    monkeypatch.setenv("OQS_INSTALL_PATH", str(tmp_path))
    assert kem._library_paths() == [
        "liboqs.so.9",
        "oqs.so.9",
        str(tmp_path / "lib" / "liboqs.so"),
        str(tmp_path / "lib64" / "liboqs.so"),
    ]
    monkeypatch.delenv("OQS_INSTALL_PATH")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(kem.ctypes.util, "find_library", lambda name: None)
    assert kem._library_paths() == [
        str(tmp_path / "_oqs" / directory / "liboqs.so") for directory in ("lib", "lib64")
    ]


class FakeLibrary:
    """A loaded liboqs with a version and a set of enabled algorithms."""

    class _Function:
        def __init__(self, answer):
            self.answer = answer

        def __call__(self, *arguments):
            return self.answer(*arguments)

    def __init__(self, version: bytes, enabled: set[bytes]) -> None:
        self.OQS_version = self._Function(lambda: version)
        self.OQS_KEM_alg_is_enabled = self._Function(lambda name: name in enabled)


BOTH = {b"ML-KEM-768", b"ML-KEM-1024"}


def test_a_patch_release_of_the_wanted_version_will_do():
    kem._check_library(FakeLibrary(b"0.16.3-rc1", BOTH), "liboqs.so", "0.16.0.1")


@pytest.mark.parametrize("version", [b"0.15.0", b"1.16.0", b"0.17.0-dev"])
def test_another_minor_or_major_version_will_not_do(version):
    with pytest.raises(kem._LiboqsUnavailableError, match="same major and minor"):
        kem._check_library(FakeLibrary(version, BOTH), "liboqs.so", "0.16.0.1")


def test_a_build_without_a_parameter_set_will_not_do():
    with pytest.raises(kem._LiboqsUnavailableError, match="without ML-KEM-1024"):
        kem._check_library(FakeLibrary(b"0.16.0", {b"ML-KEM-768"}), "liboqs.so", "0.16.0")


def test_a_failing_import_is_unavailable_not_an_exit(monkeypatch):
    monkeypatch.setattr(kem, "_probe_liboqs", lambda: None)
    monkeypatch.setattr(kem.importlib, "import_module", lambda name: sys.exit("building liboqs"))
    monkeypatch.delenv("PYOQS_VERSION", raising=False)
    with pytest.raises(ConfigError, match="importing oqs failed"):
        load_kem_provider(KemProviderChoice.LIBOQS)
    assert load_kem_provider(KemProviderChoice.AUTO).name.startswith("OpenSSL")
    assert "PYOQS_VERSION" not in os.environ


def test_a_user_without_a_home_directory_gets_openssl(monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("OQS_INSTALL_PATH", raising=False)
    monkeypatch.setattr(kem.Path, "home", homeless)
    assert load_kem_provider(KemProviderChoice.AUTO).name.startswith("OpenSSL")
    with pytest.raises(ConfigError, match="no home directory"):
        load_kem_provider(KemProviderChoice.LIBOQS)


def test_the_environment_is_put_back_after_the_import(monkeypatch):
    monkeypatch.setenv("PYOQS_VERSION", "0.16.0")
    with kem._quiet_import():
        assert os.environ["PYOQS_VERSION"] == "never-install"
    assert os.environ["PYOQS_VERSION"] == "0.16.0"

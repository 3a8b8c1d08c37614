"""ML-KEM (FIPS 203) from liboqs, where its library is installed, else from OpenSSL.

Theory of operation. Every epoch makes a fresh ML-KEM key pair, so both providers are reduced to
two operations that give the same bytes: :meth:`KemProvider.generate` (whose result decapsulates
once and is wiped) and :meth:`KemProvider.encapsulate`. Everything a peer can send here, an
encapsulation key or a ciphertext, is checked for its length and, for the key, for its modulus
(FIPS 203 §7.2) before any secret is touched; what fails is a
:class:`~qproxy.errors.RemoteProtocolError`, whichever library noticed.

The choice of a library is made once, at start. It needs care: ``import oqs`` (liboqs-python)
without the native library *clones, builds and installs it*, and says so on standard output. So the
library is looked for here first, by the very search that liboqs-python makes, and its version and
algorithms are checked; only then is ``oqs`` imported, with its own log handler taken away.

How well secrets are wiped. With liboqs the decapsulation key and the shared secret live in
bytearrays of ours alone and are overwritten. With OpenSSL the decapsulation key lives in OpenSSL's
memory and is cleansed by it when the last reference goes; the shared secret passes through one
immutable ``bytes`` object that Python frees without overwriting.
"""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
import importlib
import importlib.metadata
import logging
import os
import platform
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.backends.openssl import backend
from cryptography.hazmat.primitives.asymmetric import mlkem

from qproxy.errors import ConfigError, LocalProtocolError, Reason, RemoteProtocolError
from qproxy.modes import KemAlgorithm, KemProviderChoice

#: Length of an ML-KEM shared secret in bytes, for every parameter set (FIPS 203 table 3).
SHARED_SECRET_BYTES: Final = 32
#: Length of the seed d ‖ z a key pair can be made from, in bytes (FIPS 203 §7.1).
SEED_BYTES: Final = 64
#: The modulus q of ML-KEM (FIPS 203 §2.4.1).
MODULUS: Final = 3329


@dataclass(frozen=True, slots=True)
class KemSizes:
    """Sizes of one parameter set in bytes. Source: FIPS 203 table 3.

    Attributes:
        encapsulation_key: what OFFER carries.
        decapsulation_key: the expanded form that liboqs keeps.
        ciphertext: what ACCEPT carries.
    """

    encapsulation_key: int
    decapsulation_key: int
    ciphertext: int


SIZES: Final[dict[KemAlgorithm, KemSizes]] = {
    KemAlgorithm.ML_KEM_768: KemSizes(1184, 2400, 1088),
    KemAlgorithm.ML_KEM_1024: KemSizes(1568, 3168, 1568),
}


class KemKeyPair(Protocol):
    """One ephemeral key pair. Whoever asked for it wipes it."""

    @property
    def encapsulation_key(self) -> bytes:
        """The public half: 1184 bytes (ML-KEM-768) or 1568 bytes (ML-KEM-1024)."""

    def decapsulate(self, ciphertext: bytes) -> bytearray:
        """The 32-byte shared secret, owned and wiped by the caller.

        A well-formed ciphertext that was made for another key gives a different secret and no
        error (implicit rejection, FIPS 203 §6.3): the confirmation MACs tell the two apart.

        Raises:
            RemoteProtocolError: malformed_message, where the ciphertext has the wrong length.
            LocalProtocolError: internal_error, where the key pair was wiped before.
        """

    def wipe(self) -> None:
        """Erase the private half. Idempotent; nothing can be decapsulated afterwards."""


class KemProvider(Protocol):
    """A library that computes ML-KEM."""

    @property
    def name(self) -> str:
        """Library and version for log and status, such as ``liboqs 0.16.0``."""

    def generate(self, algorithm: KemAlgorithm) -> KemKeyPair:
        """Make a fresh key pair from the library's own random generator."""

    def encapsulate(
        self, algorithm: KemAlgorithm, encapsulation_key: bytes
    ) -> tuple[bytearray, bytes]:
        """Make a shared secret for whoever holds the other half of ``encapsulation_key``.

        Returns:
            The 32-byte shared secret, owned and wiped by the caller, and the ciphertext of 1088
            (ML-KEM-768) or 1568 bytes (ML-KEM-1024).

        Raises:
            RemoteProtocolError: malformed_message, where the key has the wrong length or a
                coefficient that is not reduced modulo q (FIPS 203 §7.2).
        """


def check_encapsulation_key(algorithm: KemAlgorithm, encapsulation_key: bytes) -> None:
    """Check the length of a peer's encapsulation key. The libraries check the modulus.

    Raises:
        RemoteProtocolError: malformed_message, with the length expected and the one that came.
    """
    expected = SIZES[algorithm].encapsulation_key
    if len(encapsulation_key) != expected:
        raise RemoteProtocolError(
            Reason.MALFORMED_MESSAGE,
            f"encapsulation key of {algorithm}: expected {expected} bytes, "
            f"got {len(encapsulation_key)}",
        )


def check_ciphertext(algorithm: KemAlgorithm, ciphertext: bytes) -> None:
    """Check the length of a peer's ciphertext. Every content of that length is valid.

    Raises:
        RemoteProtocolError: malformed_message, with the length expected and the one that came.
    """
    expected = SIZES[algorithm].ciphertext
    if len(ciphertext) != expected:
        raise RemoteProtocolError(
            Reason.MALFORMED_MESSAGE,
            f"ciphertext of {algorithm}: expected {expected} bytes, got {len(ciphertext)}",
        )


def _check_seed(seed: bytes) -> None:
    if len(seed) != SEED_BYTES:
        raise LocalProtocolError(
            Reason.INTERNAL_ERROR, f"ML-KEM seed: expected {SEED_BYTES} bytes, got {len(seed)}"
        )


def _invalid_key(algorithm: KemAlgorithm) -> RemoteProtocolError:
    return RemoteProtocolError(
        Reason.MALFORMED_MESSAGE,
        f"encapsulation key of {algorithm}: expected every coefficient below {MODULUS}, "
        "got one that is not",
    )


def _wiped() -> LocalProtocolError:
    return LocalProtocolError(Reason.INTERNAL_ERROR, "ML-KEM key pair used after wipe()")


# --- OpenSSL, through cryptography -----------------------------------------------------------

_OpenSslPrivateKey = mlkem.MLKEM768PrivateKey | mlkem.MLKEM1024PrivateKey

_OPENSSL_CLASSES: Final[dict[KemAlgorithm, tuple[Any, Any]]] = {
    KemAlgorithm.ML_KEM_768: (mlkem.MLKEM768PrivateKey, mlkem.MLKEM768PublicKey),
    KemAlgorithm.ML_KEM_1024: (mlkem.MLKEM1024PrivateKey, mlkem.MLKEM1024PublicKey),
}


class OpenSslKeyPair:
    """A key pair whose private half OpenSSL holds."""

    __slots__ = ("_algorithm", "_private_key", "encapsulation_key")

    def __init__(self, algorithm: KemAlgorithm, private_key: _OpenSslPrivateKey) -> None:
        self._algorithm = algorithm
        self._private_key: _OpenSslPrivateKey | None = private_key
        self.encapsulation_key: bytes = private_key.public_key().public_bytes_raw()

    def decapsulate(self, ciphertext: bytes) -> bytearray:
        """See :meth:`KemKeyPair.decapsulate`."""
        if self._private_key is None:
            raise _wiped()
        check_ciphertext(self._algorithm, ciphertext)
        return bytearray(self._private_key.decapsulate(ciphertext))

    def wipe(self) -> None:
        """Drop the only reference, upon which OpenSSL cleanses and frees the key."""
        self._private_key = None


class OpenSslKem:
    """ML-KEM from the OpenSSL that ``cryptography`` ships. There is no state to share."""

    def __init__(self) -> None:
        words = backend.openssl_version_text().split()
        self.name = " ".join(words[:2])

    def generate(self, algorithm: KemAlgorithm) -> OpenSslKeyPair:
        """See :meth:`KemProvider.generate`."""
        private, _ = _OPENSSL_CLASSES[algorithm]
        return OpenSslKeyPair(algorithm, private.generate())

    def key_pair_from_seed(self, algorithm: KemAlgorithm, seed: bytes) -> OpenSslKeyPair:
        """The key pair that the 64 bytes d ‖ z stand for: for known answers, never for traffic."""
        _check_seed(seed)
        private, _ = _OPENSSL_CLASSES[algorithm]
        return OpenSslKeyPair(algorithm, private.from_seed_bytes(seed))

    def encapsulate(
        self, algorithm: KemAlgorithm, encapsulation_key: bytes
    ) -> tuple[bytearray, bytes]:
        """See :meth:`KemProvider.encapsulate`."""
        check_encapsulation_key(algorithm, encapsulation_key)
        _, public = _OPENSSL_CLASSES[algorithm]
        try:
            public_key = public.from_public_bytes(encapsulation_key)
        except ValueError:
            # The length is right, so what OpenSSL refused is the modulus.
            raise _invalid_key(algorithm) from None
        shared_secret, ciphertext = public_key.encapsulate()
        return bytearray(shared_secret), ciphertext


# --- liboqs, through liboqs-python -----------------------------------------------------------

_OQS_NAMES: Final[dict[KemAlgorithm, bytes]] = {
    KemAlgorithm.ML_KEM_768: b"ML-KEM-768",
    KemAlgorithm.ML_KEM_1024: b"ML-KEM-1024",
}
_OQS_SUCCESS: Final = 0


def _c_buffer(buffer: bytearray) -> ctypes.Array[ctypes.c_char]:
    """Show a bytearray to C without copying it. It cannot be resized while this lives."""
    return (ctypes.c_char * len(buffer)).from_buffer(buffer)


class LiboqsKeyPair:
    """A key pair whose expanded private half lies in a bytearray of ours."""

    __slots__ = ("_algorithm", "_kem", "_private_key", "encapsulation_key")

    def __init__(
        self, kem: LiboqsKem, algorithm: KemAlgorithm, encapsulation_key: bytes, private: bytearray
    ) -> None:
        self._kem = kem
        self._algorithm = algorithm
        self._private_key: bytearray | None = private
        self.encapsulation_key = encapsulation_key

    def decapsulate(self, ciphertext: bytes) -> bytearray:
        """See :meth:`KemKeyPair.decapsulate`."""
        if self._private_key is None:
            raise _wiped()
        check_ciphertext(self._algorithm, ciphertext)
        shared_secret = bytearray(SHARED_SECRET_BYTES)
        self._kem.call(
            "OQS_KEM_decaps",
            self._algorithm,
            _c_buffer(shared_secret),
            bytes(ciphertext),
            _c_buffer(self._private_key),
        )
        return shared_secret

    def wipe(self) -> None:
        """Overwrite the private half."""
        if self._private_key is not None:
            self._private_key[:] = bytes(len(self._private_key))
            self._private_key = None


class LiboqsKem:
    """ML-KEM from liboqs.

    The functions of the C library are called through the handle of liboqs-python, rather than
    through its ``KeyEncapsulation``, which leaves copies of secrets behind in immutable objects.
    The OQS_KEM structures are constant tables, made once and never freed.
    """

    def __init__(self, oqs: Any) -> None:
        self.name = f"liboqs {oqs.oqs_version()}"
        self._native = oqs.native()
        self._structs = {
            algorithm: self._native.OQS_KEM_new(name) for algorithm, name in _OQS_NAMES.items()
        }

    def call(self, function: str, algorithm: KemAlgorithm, *arguments: object) -> None:
        """Call a C function of liboqs that takes an OQS_KEM first and returns an OQS_STATUS.

        Raises:
            LocalProtocolError: internal_error, where it returned anything but OQS_SUCCESS.
        """
        if getattr(self._native, function)(self._structs[algorithm], *arguments) != _OQS_SUCCESS:
            raise LocalProtocolError(Reason.INTERNAL_ERROR, f"{function} of {self.name} failed")

    def generate(self, algorithm: KemAlgorithm) -> LiboqsKeyPair:
        """See :meth:`KemProvider.generate`."""
        return self._key_pair(algorithm, "OQS_KEM_keypair")

    def key_pair_from_seed(self, algorithm: KemAlgorithm, seed: bytes) -> LiboqsKeyPair:
        """The key pair that the 64 bytes d ‖ z stand for: for known answers, never for traffic."""
        _check_seed(seed)
        return self._key_pair(algorithm, "OQS_KEM_keypair_derand", bytes(seed))

    def _key_pair(self, algorithm: KemAlgorithm, function: str, *seed: bytes) -> LiboqsKeyPair:
        sizes = SIZES[algorithm]
        public = bytearray(sizes.encapsulation_key)
        private = bytearray(sizes.decapsulation_key)
        self.call(function, algorithm, _c_buffer(public), _c_buffer(private), *seed)
        return LiboqsKeyPair(self, algorithm, bytes(public), private)

    def encapsulate(
        self, algorithm: KemAlgorithm, encapsulation_key: bytes
    ) -> tuple[bytearray, bytes]:
        """See :meth:`KemProvider.encapsulate`."""
        return self._encapsulate(algorithm, encapsulation_key, "OQS_KEM_encaps")

    def encapsulate_from_seed(
        self, algorithm: KemAlgorithm, encapsulation_key: bytes, m: bytes
    ) -> tuple[bytearray, bytes]:
        """Encapsulate with the 32 random bytes m given: for known answers, never for traffic."""
        return self._encapsulate(algorithm, encapsulation_key, "OQS_KEM_encaps_derand", bytes(m))

    def _encapsulate(
        self, algorithm: KemAlgorithm, encapsulation_key: bytes, function: str, *seed: bytes
    ) -> tuple[bytearray, bytes]:
        check_encapsulation_key(algorithm, encapsulation_key)
        shared_secret = bytearray(SHARED_SECRET_BYTES)
        ciphertext = bytearray(SIZES[algorithm].ciphertext)
        key = bytes(encapsulation_key)
        try:
            self.call(
                function, algorithm, _c_buffer(ciphertext), _c_buffer(shared_secret), key, *seed
            )
        except LocalProtocolError:
            # With the length checked, encapsulation fails for the key's modulus alone.
            raise _invalid_key(algorithm) from None
        return shared_secret, bytes(ciphertext)


class _LiboqsUnavailableError(Exception):
    """Why liboqs cannot be used; the message ends up in a ConfigError."""


def _library_paths() -> list[str]:
    """Where liboqs-python looks for the native library, in its order.

    Source: liboqs-python 0.16, ``oqs/oqs.py``, ``_load_liboqs`` and ``_load_shared_obj``.
    """
    system = platform.system()
    configured = os.environ.get("OQS_INSTALL_PATH")
    root = Path(configured) if configured is not None else Path.home() / "_oqs"
    found: list[str] = []
    for name in ("liboqs", "oqs"):
        with contextlib.suppress(Exception):
            if path := ctypes.util.find_library(name):
                found.append(path)
    directories = ("bin", "bin") if system == "Windows" else ("lib", "lib64")
    names = {"Darwin": ("liboqs.dylib",), "Windows": ("oqs.dll", "liboqs.dll")}
    for directory in directories:
        for name in names.get(system, ("liboqs.so",)):
            found.append(str((root / directory).absolute() / name))
    return found


def _probe_liboqs() -> None:
    """Load the native library that ``import oqs`` would load, and check that it will do.

    The handle is never closed, so that the import which follows finds the same library even if its
    file goes away in between.

    Raises:
        _LiboqsUnavailableError: it is absent, of another version, or built without ML-KEM.
    """
    try:
        wanted = importlib.metadata.version("liboqs-python")
    except importlib.metadata.PackageNotFoundError:
        raise _LiboqsUnavailableError("the Python package liboqs-python is not installed") from None
    try:
        paths = _library_paths()
    except RuntimeError:
        # liboqs-python would stop at the same: this user is in no table and HOME is not set.
        raise _LiboqsUnavailableError("this user has no home directory to look in") from None
    for path in paths:
        try:
            library = ctypes.CDLL(path)
        except OSError:
            continue
        _check_library(library, path, wanted)
        return
    raise _LiboqsUnavailableError("its shared library was not found")


def _check_library(library: ctypes.CDLL, path: str, wanted: str) -> None:
    """Check version and algorithms of a loaded liboqs.

    liboqs-python mirrors C structures of the release whose number it carries, so major and minor
    version have to agree with ``wanted``, the version of liboqs-python.
    """
    try:
        library.OQS_version.restype = ctypes.c_char_p
        version = library.OQS_version().decode("ascii")
        library.OQS_KEM_alg_is_enabled.argtypes = [ctypes.c_char_p]
        missing = [
            name.decode("ascii")
            for name in _OQS_NAMES.values()
            if not library.OQS_KEM_alg_is_enabled(name)
        ]
    except AttributeError:
        raise _LiboqsUnavailableError(f"{path} is not a liboqs library") from None
    if version.split(".")[:2] != wanted.split(".")[:2]:
        raise _LiboqsUnavailableError(
            f"{path} is version {version}, and liboqs-python {wanted} needs the same major and "
            "minor version"
        )
    if missing:
        raise _LiboqsUnavailableError(f"{path} was built without {' and '.join(missing)}")


@contextlib.contextmanager
def _quiet_import() -> Iterator[None]:
    """Keep ``import oqs`` from printing, warning or building anything.

    It logs to standard output by a handler of its own, through the logger ``oqs.oqs``. The
    uninstallable PYOQS_VERSION is a second lock: should its search fail after ours succeeded, it
    stops with a ValueError in place of a git clone.
    """
    logger = logging.getLogger("oqs.oqs")
    logger.disabled = True
    before = os.environ.get("PYOQS_VERSION")
    os.environ["PYOQS_VERSION"] = "never-install"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        if before is None:
            del os.environ["PYOQS_VERSION"]
        else:
            os.environ["PYOQS_VERSION"] = before
        for handler in tuple(logger.handlers):
            logger.removeHandler(handler)


def _load_liboqs() -> LiboqsKem:
    _probe_liboqs()
    try:
        with _quiet_import():
            oqs = importlib.import_module("oqs")
        return LiboqsKem(oqs)
    except (Exception, SystemExit) as error:
        # A broken installation may fail in any way, and leaves by SystemExit in some.
        raise _LiboqsUnavailableError(f"importing oqs failed ({type(error).__name__})") from error


def _load_openssl() -> OpenSslKem:
    provider = OpenSslKem()
    try:
        provider.generate(KemAlgorithm.ML_KEM_768).wipe()
    except UnsupportedAlgorithm:
        raise ConfigError(
            f"{provider.name} has no ML-KEM",
            key="node.kem_provider",
            hint="install cryptography from its wheels, whose OpenSSL has ML-KEM, or liboqs",
        ) from None
    return provider


def load_kem_provider(choice: KemProviderChoice) -> KemProvider:
    """Load the library that computes ML-KEM. Call once, at start: it touches the file system.

    Nothing is ever downloaded, built or printed.

    Args:
        choice: ``auto`` takes liboqs where it can be used, because its key generation is several
            times as fast, else OpenSSL. The provider's ``name`` tells which it was.

    Raises:
        ConfigError: liboqs was asked for and cannot be used, or there is no ML-KEM at all; with a
            hint about what to do.
    """
    if choice is KemProviderChoice.OPENSSL:
        return _load_openssl()
    try:
        return _load_liboqs()
    except _LiboqsUnavailableError as unavailable:
        if choice is KemProviderChoice.AUTO:
            return _load_openssl()
        raise ConfigError(
            f"liboqs cannot be used: {unavailable}",
            key="node.kem_provider",
            hint="install the liboqs shared library with ML-KEM-768 and ML-KEM-1024 (set "
            "OQS_INSTALL_PATH if it is not in the system's library path), or set kem_provider "
            "to auto or openssl",
        ) from unavailable

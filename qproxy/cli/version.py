"""What `qproxy --version` prints."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import platform
from pathlib import Path

from qproxy import __version__


def version_text() -> str:
    """Versions of what a fault report needs: qproxy, Python, OpenSSL and liboqs."""
    return "\n".join(
        (
            f"qproxy {__version__}",
            f"Python {platform.python_version()}",
            f"{_openssl()} (of cryptography {_package('cryptography')})",
            f"liboqs {_liboqs()} (liboqs-python {_package('liboqs-python')})",
        )
    )


def _openssl() -> str:
    try:
        from cryptography.hazmat.backends.openssl import backend  # noqa: PLC0415 - may be absent
    except ImportError:
        return "OpenSSL not found"
    return backend.openssl_version_text()


def _package(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _liboqs() -> str:
    """Version of the native library. `oqs` itself is not imported: it would build one."""
    try:
        root = Path(os.environ.get("OQS_INSTALL_PATH") or Path.home() / "_oqs")
    except RuntimeError:  # a user without a home, as in some containers
        root = Path("/nonexistent")
    for path in ("liboqs.so", root / "lib" / "liboqs.so", root / "lib64" / "liboqs.so"):
        try:
            library = ctypes.CDLL(str(path))
            library.OQS_version.restype = ctypes.c_char_p
            return str(library.OQS_version().decode("ascii"))
        except (OSError, AttributeError, UnicodeDecodeError):
            continue
    return "not found, so ML-KEM comes from OpenSSL"

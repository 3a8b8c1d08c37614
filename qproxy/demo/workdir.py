"""The directory the demonstration works in: certificates and the YAML files of every program."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import yaml

from qproxy.demo.settings import REKEY_BYTES, REKEY_INTERVAL_S, DemoError
from qproxy.pki import PkiError, init_pki

#: Certificates are good for so many days: longer than what a gateway warns of.
_PKI_DAYS: Final = 60
#: Let the system choose a free port; each program logs which one it got.
_ANY_PORT: Final = "127.0.0.1:0"

#: The simulated link of the demonstration, as `kme_sim.link` has it.
DEMO_LINK: Final[Mapping[str, object]] = {"key_rate_bps": 100_000, "initial_key_count": 1000}
#: What the demonstration sets in the section of the peer, on both sides.
DEMO_PEER: Final[Mapping[str, object]] = {
    "rekey": {"interval_s": REKEY_INTERVAL_S, "bytes": REKEY_BYTES}
}


@contextlib.contextmanager
def open_workdir(keep_dir: Path | None) -> Iterator[Path]:
    """A directory of mode 0700, removed at the end unless one was named.

    Args:
        keep_dir: use this one, new or empty, and leave it there.

    Raises:
        DemoError: the directory cannot be made, or something is in it.
    """
    if keep_dir is not None:
        yield _make(keep_dir.absolute())
        return
    try:
        directory = Path(tempfile.mkdtemp(prefix="qproxy-demo-"))
    except OSError as error:
        raise DemoError(
            f"cannot make a temporary directory: {error.strerror}",
            hint="set TMPDIR to a directory that you may write to, or use --keep-dir",
        ) from None
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _make(directory: Path) -> Path:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if any(directory.iterdir()):
            raise DemoError(
                f"{directory} is not empty", hint="give --keep-dir a new or empty directory"
            )
        directory.chmod(0o700)
    except OSError as error:
        raise DemoError(
            f"cannot use {directory}: {error.strerror}",
            hint="give --keep-dir a directory that you may write to",
        ) from None
    return directory


def make_pki(directory: Path) -> None:
    """Make the trial PKI in `pki`. Raises DemoError."""
    try:
        init_pki(directory / "pki", days=_PKI_DAYS)
    except PkiError as error:
        raise DemoError(str(error), hint=error.hint) from None


def write_kme_sim(directory: Path, *, link: Mapping[str, object] = DEMO_LINK) -> Path:
    """Write the configuration of the KME pair, with these settings of the link."""
    kmes = {name: {"listen": _ANY_PORT, **_certificate(name)} for name in ("kme-a", "kme-b")}
    return _write(
        directory / "kme-sim.yaml",
        "Two simulated KMEs. Their keys come from a random number generator.",
        {
            "kme_sim": {
                "kmes": kmes,
                "saes": {"gw-a": "kme-a", "gw-b": "kme-b"},
                "link": dict(link),
                "control": {"listen": _ANY_PORT},
            },
            "log": {"format": "json", "level": "info"},
        },
    )


def write_far_gateway(
    directory: Path,
    *,
    kme: str,
    service: str,
    peer_settings: Mapping[str, object] = DEMO_PEER,
) -> Path:
    """Write the configuration of gw-b, beside the service.

    Args:
        directory: the working directory.
        kme: address of kme-b.
        service: address of the service.
        peer_settings: more for the section of gw-a.
    """
    return _write(
        directory / "gw-b.yaml",
        "The gateway beside the service: tunnels arrive here.",
        {
            **_gateway("gw-b", "kme-b", kme),
            "tunnel": {"listen": _ANY_PORT},
            "peers": {"gw-a": {"key_source": "kme-b", **peer_settings}},
            "services": {"demo": {"connect": service, "peers": ["gw-a"]}},
        },
    )


def write_near_gateway(
    directory: Path,
    *,
    kme: str,
    peer: str,
    peer_settings: Mapping[str, object] = DEMO_PEER,
    sections: Mapping[str, object] | None = None,
) -> Path:
    """Write the configuration of gw-a, which clients connect to and which dials gw-b.

    Args:
        directory: the working directory.
        kme: address of kme-a.
        peer: where gw-b takes tunnels.
        peer_settings: more for the section of gw-b.
        sections: more sections of the configuration.
    """
    return _write(
        directory / "gw-a.yaml",
        "The gateway beside the clients: it dials the tunnel.",
        {
            **_gateway("gw-a", "kme-a", kme),
            "peers": {"gw-b": {"address": peer, "key_source": "kme-a", **peer_settings}},
            "listeners": {"demo": {"listen": _ANY_PORT, "peer": "gw-b", "service": "demo"}},
            **(sections or {}),
        },
    )


def _gateway(name: str, kme_name: str, kme: str) -> dict[str, object]:
    return {
        "node": {"name": name},
        "log": {"format": "json", "level": "debug"},
        "identity": _certificate(name),
        "key_sources": {
            kme_name: {"type": "etsi-qkd-014", "url": f"https://{kme}", **_certificate(name)}
        },
        "shutdown": {"drain_s": 5},
    }


def _certificate(name: str) -> dict[str, str]:
    return {
        "certificate": f"pki/{name}.pem",
        "private_key": f"pki/{name}.key",
        "ca": "pki/ca.pem",
    }


def _write(path: Path, comment: str, content: dict[str, object]) -> Path:
    text = f"# {comment}\n" + yaml.safe_dump(content, sort_keys=False)
    path.write_text(text, encoding="utf-8")
    return path

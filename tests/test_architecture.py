"""docs/architecture.md and the code: the rooms, which way imports point, and what is pure."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
ROOMS = sorted(path.parent.name for path in (ROOT / "qproxy").glob("*/__init__.py"))

#: What every room may import.
LEAVES = {"__version__", "address", "errors", "keys", "log", "modes"}
#: What else each may, as the diagram has it: a room, or a part of one.
MAY_IMPORT: dict[str, set[str]] = {
    "crypto": set(),
    "tls": set(),
    "quantum": set(),
    "tunnel": {"crypto", "tls"},
    "net": {"tls"},
    "config": {"quantum.health_settings", "sim.events", "sim.physics", "sim.routing"},
    "sources": {"config", "net", "tls"},
    "sim": {"config", "net", "sources.etsi014_wire", "tls"},
    "kme_check": {"config", "net", "sources", "tls"},
    "audit": {"config", "quantum", "tunnel"},
    "admin": {"audit", "config", "net", "quantum", "runtime.counters", "sources", "tunnel"},
    "runtime": {"admin", "audit", "config", "crypto", "net", "quantum", "sources", "tls", "tunnel"},
    "supervisor": {"admin", "config", "net", "runtime"},
    "demo": {"cli", "config", "net", "pki"},
    "cli": {*ROOMS, "pki"},
}
#: Rooms without sockets, trio, clocks and randomness of their own; and of `sim`, all but `server`.
PURE = ("crypto", "quantum", "tls", "tunnel", "sim")
IMPURE_MODULES = {"asyncio", "random", "secrets", "select", "socket", "threading", "time", "trio"}


def imports_of(path: Path) -> Iterator[str]:
    """Modules that a file imports when it runs."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_types_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in for_types_only:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def files_of(room: str) -> list[Path]:
    return sorted((ROOT / "qproxy" / room).rglob("*.py"))


def test_the_table_has_every_room_and_no_other() -> None:
    listed = re.findall(r"^\| `qproxy/(\w+)/` \|", TEXT, re.MULTILINE)
    assert sorted(listed) == ROOMS
    assert sorted(MAY_IMPORT) == ROOMS


@pytest.mark.parametrize("room", ROOMS)
def test_imports_point_one_way(room: str) -> None:
    allowed = {*LEAVES, *MAY_IMPORT[room], room}
    for path in files_of(room):
        for module in imports_of(path):
            top, _, inner = module.partition(".")
            if top != "qproxy" or not inner:
                continue
            parts = inner.split(".")
            assert {parts[0], ".".join(parts[:2])} & allowed or _is_package(parts, allowed), (
                f"{path.relative_to(ROOT)} imports {module}"
            )


def _is_package(parts: list[str], allowed: set[str]) -> bool:
    """`from qproxy.sim import events` names the package first, then the part that is allowed."""
    return len(parts) == 1 and any(name.startswith(f"{parts[0]}.") for name in allowed)


@pytest.mark.parametrize("room", PURE)
def test_pure_rooms_bring_no_sockets_clocks_or_randomness(room: str) -> None:
    for path in files_of(room):
        if (room, path.name) == ("sim", "server.py"):
            continue
        found = {module.partition(".")[0] for module in imports_of(path)} & IMPURE_MODULES
        assert not found, f"{path.relative_to(ROOT)} imports {', '.join(found)}"


def test_the_files_it_names_exist() -> None:
    named = set(re.findall(r"`((?:tests|docs|bench|qproxy)/[\w/.-]+)`", TEXT))
    inner = re.findall(r"`((?!(?:tests|bench|qproxy)/)\w+/\w+\.py)`", TEXT)
    named |= {f"qproxy/{name}" for name in inner}
    assert len(named) > 10
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []

"""`qproxy kme-sim ctl`: let something happen to a running simulator, or see how it stands."""

from __future__ import annotations

import argparse
import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeGuard

from qproxy.address import Address, TcpAddress, parse_address
from qproxy.cli.local_http import LocalHttpError, exchange
from qproxy.cli.output import ExitCode, print_error
from qproxy.config.reader import load_kme_sim_config
from qproxy.errors import ConfigError
from qproxy.log import escape
from qproxy.sim.events import EVENTS, EventError, Figure, Member, Name, members_of, parse_event

_MAX_LINE_CHARS: Final = 300
#: What a name on the command line may be the name of, and where the network lists it.
_KINDS: Final = {"span": "spans", "kme": "kmes", "relay": "relays", "route": "routes"}
_PAGES: Final = ("status", "events")


class _UsageError(Exception):
    """The command line cannot be understood. Carries a message and a hint."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


def kme_ctl_command(options: argparse.Namespace) -> ExitCode:
    """Send one event, or show how things stand; 1 where the simulator refuses or is not there."""
    word, *arguments = options.words
    try:
        if word == "events":
            _show(event_lines())
            return ExitCode.DONE
        kind = None if word == "status" else _event_kind(word)
        address = _address(options.control)
        network = _ask(address, "GET", "/network")
        if kind is not None:
            document = {"event": word, **_members(kind, arguments, network)}
            parse_event(document)
            network = _ask(address, "POST", "/events", document)
        elif arguments:
            raise _UsageError("'status' takes nothing more")
    except (_UsageError, EventError) as error:
        print_error(str(error), error.hint or "see 'qproxy kme-sim ctl events'")
        return ExitCode.USAGE
    except LocalHttpError as error:
        print_error(str(error), "is 'qproxy kme-sim' running, with control.listen at this address?")
        return ExitCode.FAILED
    except _RefusedError as error:
        print_error(str(error))
        return ExitCode.FAILED
    if options.json:
        print(json.dumps(network, indent=2))
    else:
        _show(network_lines(network))
    return ExitCode.DONE


class _RefusedError(Exception):
    """The simulator said no, in words of its own."""


def _ask(
    address: Address, method: str, path: str, document: Mapping[str, object] | None = None
) -> dict[str, Any]:
    status, answer = exchange(address, method, path, document)
    if status != 200:
        message = answer.get("message")
        said = message if isinstance(message, str) else "no reason given"
        raise _RefusedError(f"{address} answered {status}: {said}")
    return answer


def _address(control: str) -> Address:
    """An address, a URL or the file that names one."""
    text = control.removeprefix("http://").rstrip("/")
    if Path(control).suffix in {".yaml", ".yml"} and not control.startswith(("http:", "unix:")):
        config = load_kme_sim_config(Path(control))
        if config.control is None:
            raise ConfigError(
                "nothing listens for events",
                file=config.path,
                key="kme_sim.control",
                hint="add 'control: {listen: 127.0.0.1:8440}' and start the simulator again",
            )
        return config.control.listen
    try:
        address = parse_address(text)
    except ValueError as error:
        raise _UsageError(
            str(error), "--control takes HOST:PORT, unix:/PATH or a YAML file"
        ) from None
    if isinstance(address, TcpAddress) and not address.is_loopback:
        raise _UsageError(
            f"{address} is not on this machine", "the simulator listens on loopback only"
        )
    return address


# --- From words to an event --------------------------------------------------------------------


def _event_kind(word: str) -> type[Any]:
    if word in EVENTS:
        return EVENTS[word]
    near = difflib.get_close_matches(word, [*_PAGES, *EVENTS], n=1)
    raise _UsageError(
        f"no event {word!r}",
        f"did you mean '{near[0]}'?" if near else "see 'qproxy kme-sim ctl events'",
    )


def _members(
    kind: type[Any], arguments: Sequence[str], network: Mapping[str, Any]
) -> dict[str, object]:
    """An event's members: a bare name is what it is about, ``name=value`` says it outright."""
    members = {member.name: member for member in members_of(kind)}
    values: dict[str, object] = {}
    for argument in arguments:
        name, equals, text = argument.partition("=")
        if not equals:
            name, text = _meant(argument, members, values, network), argument
        if name not in members:
            raise _UsageError(
                f"no member {name!r} with this event", f"it takes {', '.join(members)}"
            )
        if name in values:
            raise _UsageError(f"{name} is given twice")
        values[name] = _value(members[name], text)
    return values


def _meant(
    argument: str,
    members: Mapping[str, Member],
    values: Mapping[str, object],
    network: Mapping[str, Any],
) -> str:
    """Which member a bare word is for: one that names such a thing, else the next in order."""
    targets = [name for name in members if name in _KINDS and name not in values]
    known = {name: _names(network, name) for name in targets}
    for name in targets:
        if argument in known[name]:
            return name
    others = [n for n, m in members.items() if n not in values and not isinstance(m.kind, Name)]
    if others and (not targets or _fits(members[others[0]], argument)):
        return others[0]
    if targets:
        near = difflib.get_close_matches(
            argument, [n for each in known.values() for n in each], n=1
        )
        listed = "; ".join(
            f"{name}s: {', '.join(found) or 'none'}" for name, found in known.items()
        )
        raise _UsageError(
            f"no {' or '.join(targets)} called {argument!r}",
            f"did you mean '{near[0]}'?" if near else listed,
        )
    raise _UsageError(f"{argument!r} is one word too many", f"it takes {', '.join(members)}")


def _names(network: Mapping[str, Any], kind: str) -> list[str]:
    found = network.get(_KINDS[kind])
    return [str(name) for name in found] if isinstance(found, dict) else []


def _fits(member: Member, text: str) -> bool:
    try:
        member.kind.read(_value(member, text))
    except (EventError, _UsageError):
        return False
    return True


def _value(member: Member, text: str) -> object:
    if not isinstance(member.kind, Figure):
        return text
    try:
        return float(text) if len(text) <= 32 else None
    except ValueError:
        raise _UsageError(f"{member.name}: expected {member.kind.expected}") from None


# --- What is shown -----------------------------------------------------------------------------


def event_lines() -> Iterator[str]:
    """Every event with what it takes."""
    for word, kind in EVENTS.items():
        yield " ".join([word, *(_usage(member) for member in members_of(kind))])
        yield "    " + (kind.__doc__ or "").splitlines()[0].replace("``", "'")
    yield ""
    yield "A bare name is the span, KME, relay or route that it is the name of."


def _usage(member: Member) -> str:
    text = f"{member.name.upper()}" if isinstance(member.kind, Name) else f"{member.name}=…"
    if isinstance(member.kind, Figure):
        text = f"{member.name}={member.kind.minimum:g}..{member.kind.maximum:g}"
    elif not isinstance(member.kind, Name):
        text = f"{member.name}={'|'.join(member.kind.words)}"
    return text if member.required else f"[{text}]"


def network_lines(network: Mapping[str, Any]) -> Iterator[str]:
    """How the network stands. SIMULATED comes first: none of its keys protects anything."""
    yield "SIMULATED network"
    tables = {
        "span": (("between", _joined), ("state", str), ("QBER", _percent), ("key rate", _rate),
                 ("stored", _buffer)),
        "route": (("between", _joined), ("path", _joined), ("state", str), ("QBER", _percent),
                  ("key rate", _rate), ("keys", _keys), ("in step", _yes)),
        "relay": (("compromised", _yes), ("keys passed on", str)),
        "kme": (("mode", str), ("clock", _skew)),
    }  # fmt: skip
    members = {
        "QBER": "qber", "key rate": "key_rate_bps", "stored": "", "keys": "", "in step": "in_step",
        "keys passed on": "keys_passed_on", "clock": "clock_skew_s",
    }  # fmt: skip
    for kind, columns in tables.items():
        found = network.get(_KINDS[kind])
        if not isinstance(found, dict) or not found:
            continue
        rows = [[kind, *(title for title, _ in columns)]]
        for name, each in found.items():
            if isinstance(each, dict):
                cells = [
                    show(each.get(members.get(title, title)) if members.get(title, title) else each)
                    for title, show in columns
                ]
                rows.append([str(name), *cells])
        yield ""
        yield from _aligned(rows)


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _joined(value: object) -> str:
    return ", ".join(str(each) for each in value) if isinstance(value, list) else "-"


def _percent(value: object) -> str:
    return f"{100 * value:.2f} %" if _is_figure(value) else "-"


def _is_figure(value: object) -> TypeGuard[float]:
    """Whether something is a number that can be shown: JSON has wider ones."""
    return isinstance(value, int | float) and abs(value) < 1e18


def _rate(value: object) -> str:
    if not _is_figure(value):
        return "-"
    for unit, factor in (("Mbit/s", 1e6), ("kbit/s", 1e3)):
        if value >= factor:
            return f"{value / factor:.4g} {unit}"
    return f"{value:.4g} bit/s"


def _buffer(span: object) -> str:
    """How full the buffers at the ends of a span are; key rates in bits have the same units."""
    found = span if isinstance(span, dict) else {}
    part, whole = (_rate(found.get(name)) for name in ("stored_bits", "max_buffer_bits"))
    return f"{part} of {whole}".replace("/s", "")


def _keys(route: object) -> str:
    found = route if isinstance(route, dict) else {}
    return f"{found.get('stored_key_count', '-')} of {found.get('max_key_count', '-')}"


def _yes(value: object) -> str:
    return "yes" if value is True else "no" if value is False else "-"


def _skew(value: object) -> str:
    if not _is_figure(value) or value == 0:
        return "right"
    return f"{abs(value):g} s {'ahead' if value > 0 else 'behind'}"


def _show(lines: Iterator[str]) -> None:
    for line in lines:
        print(escape(line, _MAX_LINE_CHARS, backslashes=False))

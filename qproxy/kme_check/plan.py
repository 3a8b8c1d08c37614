"""Which requests are made for new keys, and how many keys they take: before any is made.

A request that a KME should refuse takes no key where it is refused, and may take as many as it
asks for where it is not. Both sums are told beforehand, and the larger one is bounded.
"""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from qproxy.kme_check.facts import Answer

#: Keys that a run may use at worst where nothing else is said.
DEFAULT_MAX_KEYS: Final = 320
#: Additional SAE IDs that are sent at most, to see them refused. A KME that takes as many or more
#: is not tried.
_MAX_ADDITIONAL: Final = 64
#: Members of a status without which nobody can tell what is beyond its limits.
_LIMITS: Final = ("key_size", "min_key_size", "max_key_size", "max_key_per_request")
#: Requests that go beyond the limits.
BEYOND_LIMITS: Final = frozenset({"size-large", "size-small", "too-many"})
#: An extension parameter that no KME knows.
UNKNOWN_EXTENSION: Final[Mapping[str, object]] = {"qproxy_check_unknown": True}


@dataclass(frozen=True, slots=True)
class Limits:
    """What a status says may be asked for; the defaults where it says nothing usable.

    Attributes:
        key_size_bits: size of a key where none is asked for.
        min_key_size_bits: smallest size.
        max_key_size_bits: largest size.
        max_key_per_request: most keys at once.
        max_sae_id_count: most additional slave SAEs.
        told: whether a status told all of it; what lies beyond the limits is not tried else.
    """

    key_size_bits: int = 256
    min_key_size_bits: int = 256
    max_key_size_bits: int = 256
    max_key_per_request: int = 1
    max_sae_id_count: int = 0
    told: bool = False

    @classmethod
    def of(cls, status: Answer) -> Limits:
        """Read them out of a status."""
        size = status.number("key_size") or cls().key_size_bits
        return cls(
            key_size_bits=size,
            min_key_size_bits=min(status.number("min_key_size") or size, size),
            max_key_size_bits=max(status.number("max_key_size") or size, size),
            max_key_per_request=status.number("max_key_per_request") or 1,
            max_sae_id_count=status.number("max_SAE_ID_count") or 0,
            told=all(status.number(name) is not None for name in _LIMITS),
        )

    @property
    def another_size_bits(self) -> int:
        """A size other than ``key_size`` that may be asked for; itself where there is none."""
        size = self.key_size_bits
        larger = min(2 * size, self.max_key_size_bits // 8 * 8)
        smaller = max(size // 16 * 8, -(-self.min_key_size_bits // 8) * 8)
        return larger if larger > size else min(smaller, size)

    @property
    def odd_size_bits(self) -> int:
        """A size that is no multiple of 8, within the limits where one is."""
        upwards = self.key_size_bits + 1 <= self.max_key_size_bits
        return self.key_size_bits + (1 if upwards else -1)


@dataclass(frozen=True, slots=True)
class Step:
    """One request for new keys.

    Attributes:
        name: of its answer in the evidence.
        json: body of a POST, or None for a GET.
        query: of a GET.
        gives: keys that a conforming KME gives.
        risks: keys that a KME may give which does not refuse it.
        stranger: the path names an SAE that nobody registered.
    """

    name: str
    json: object | None = None
    query: str = ""
    gives: int = 0
    risks: int = 0
    stranger: str | None = None

    @property
    def worst(self) -> int:
        """Keys it may take at worst."""
        return max(self.gives, self.risks)


def steps(limits: Limits) -> list[Step]:
    """Every request for new keys with one end as master, those that shall be refused last."""
    several = min(3, limits.max_key_per_request)
    two = min(2, limits.max_key_per_request)
    size, other = limits.key_size_bits, limits.another_size_bits
    too_many = limits.max_key_per_request + 1
    strangers = [_stranger() for _ in range(min(limits.max_sae_id_count + 1, _MAX_ADDITIONAL))]
    found = [
        Step("get-default", gives=1),
        Step("get-sized", query=f"number={two}&size={other}", gives=two),
        Step("post-default", json={}, gives=1),
        Step("post-several", json={"number": several, "size": size}, gives=several),
        Step("post-optional", json={"extension_optional": [dict(UNKNOWN_EXTENSION)]}, gives=1),
        Step("size-odd-get", query=f"size={limits.odd_size_bits}", risks=1),
        Step("size-odd-post", json={"size": limits.odd_size_bits}, risks=1),
        Step("size-large", json={"size": limits.max_key_size_bits // 8 * 8 + 8}, risks=1),
        Step("mandatory", json={"extension_mandatory": [dict(UNKNOWN_EXTENSION)]}, risks=1),
        Step("additional", json={"additional_slave_SAE_IDs": strangers}, risks=1),
        Step("unknown-sae", json={}, risks=1, stranger=_stranger()),
        Step("malformed", json=["number", 1], risks=1),
        Step("too-many", json={"number": too_many, "size": size}, risks=too_many),
    ]
    if limits.max_sae_id_count >= _MAX_ADDITIONAL:
        found = [step for step in found if step.name != "additional"]
    smaller = (limits.min_key_size_bits - 1) // 8 * 8
    if smaller >= 8:
        found.insert(8, Step("size-small", json={"size": smaller}, risks=1))
    return [step for step in found if limits.told or step.name not in BEYOND_LIMITS]


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run is going to ask for.

    Attributes:
        steps: for each end as master, in order.
        left_out: names of steps that would have gone beyond the bound, and why.
        max_keys: the bound.
    """

    steps: tuple[tuple[Step, ...], ...]
    left_out: Mapping[str, str]
    max_keys: int

    @property
    def gives(self) -> int:
        """Keys that conforming KMEs give."""
        return sum(step.gives for each in self.steps for step in each)

    @property
    def worst(self) -> int:
        """Keys that are asked for altogether."""
        return sum(step.worst for each in self.steps for step in each)


def make_plan(limits: Sequence[Limits], max_keys: int) -> Plan:
    """Choose the steps that fit: the greediest goes first, in every direction alike.

    Args:
        limits: of each KME that is asked for new keys.
        max_keys: how many keys may be used at worst.
    """
    plan = Plan(tuple(tuple(steps(each)) for each in limits), {}, max_keys)
    while plan.worst > max_keys:
        # Steps that shall be refused go before those that give what the rest needs.
        named = [step for each in plan.steps for step in each]
        victim = max(named, key=lambda step: (step.gives == 0, step.worst)).name
        why = f"it could take more than the {max_keys} keys that --keys allows"
        plan = dataclasses.replace(
            plan,
            steps=tuple(tuple(step for step in each if step.name != victim) for each in plan.steps),
            left_out={**plan.left_out, victim: why},
        )
    return plan


def _stranger() -> str:
    """An SAE ID that nobody has registered."""
    return f"qproxy-check-{uuid.uuid4()}"

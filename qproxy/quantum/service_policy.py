"""What one service demands of a tunnel's keys, beside what its peer's policy demands.

A listener (near end) or a service (far end) may be stricter than the peer whose tunnels carry it:
payments may require a QKD key while monitoring on the same tunnel goes on without. Each end asks
this rule for itself, on its own clock and about its own view of the tunnel, so the stricter end
wins without a word on the wire. No override can loosen the peer's policy, which the tunnel itself
enforces (:mod:`qproxy.quantum.policy`).
"""

from __future__ import annotations

from dataclasses import dataclass

from qproxy.modes import Mode, Policy


@dataclass(frozen=True, slots=True, kw_only=True)
class ServicePolicy:
    """What streams of one service demand of the tunnel that carries them.

    Attributes:
        policy: ``require`` or ``prefer``; None for whatever the peer's policy allows, which is
            also all that ``prefer`` demands.
        max_without_qkd_s: under ``require``, how old the last QKD key may be while the running
            epoch is not hybrid, in seconds.
    """

    policy: Policy | None
    max_without_qkd_s: float

    @classmethod
    def of(
        cls, policy: Policy | None, max_without_qkd_s: float | None, peer_max_without_qkd_s: float
    ) -> ServicePolicy:
        """The policy as configured; a limit that is not given is the peer's."""
        limit_s = peer_max_without_qkd_s if max_without_qkd_s is None else max_without_qkd_s
        return cls(policy=policy, max_without_qkd_s=limit_s)

    @property
    def requires(self) -> bool:
        """Whether anything is demanded at all."""
        return self.policy is Policy.REQUIRE

    def met(self, mode: Mode | None, qkd_age_s: float | None) -> bool:
        """Whether streams may be opened on a tunnel, and go on there.

        Args:
            mode: mode of the epoch that runs, or None before the first.
            qkd_age_s: since the last QKD key went into the tunnel; None for never.
        """
        if not self.requires or mode is Mode.HYBRID:
            return True
        # Not "greater than": an age that is not a number must not keep a stream alive.
        return qkd_age_s is not None and qkd_age_s <= self.max_without_qkd_s

"""Several key sources towards one peer: what they amount to, and which the next epoch is made from.

Theory of operation. A *path* is one source at this end and its counterpart at the other, with a
stock and a link health of its own. An epoch takes its keys from every path that has some to give;
``at_least`` paths make it hybrid. With one path everything here is the identity.

The link towards the peer is as good as its paths: HEALTHY while all are, DOWN while fewer than
``at_least`` can be used, DEGRADED in between. What the policy weighs, keys in stock and supply, is
that of the *binding* path: the ``at_least``-th best one, without which no epoch is hybrid.

When an epoch of several paths fails for a key, neither end can say whose it was: a MAC covers them
all, and a REJECT names a reason and no key. So all of them become suspects, and the offers that
follow take one suspect alone; what fails alone is to blame. Nothing less will do: a source that
gives wrong keys at moments of its choice could otherwise make another look guilty and have it left
out, which is all that somebody wants who knows the keys of the first. Suspicion ends with an epoch
that commits.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from qproxy.errors import LocalProtocolError, Reason
from qproxy.keys import QkdKey
from qproxy.quantum.health import LinkState
from qproxy.quantum.stock import Reservation, ReservationState


@dataclass(frozen=True, slots=True, kw_only=True)
class PathView:
    """One path as it stands when an epoch is decided on.

    Attributes:
        name: of the path.
        state: of its link.
        reason: why it is in that state.
        keys_available: keys in its stock.
        awaits_trial: it is down because keys failed, and only an epoch can heal it.
        on_trial: its link is down, and health allows this one epoch all the same.
        proven: its link is down still, but an epoch with its keys has committed since.
    """

    name: str
    state: LinkState
    reason: Reason
    keys_available: int
    awaits_trial: bool = False
    on_trial: bool = False
    proven: bool = False

    def usable(self, *, spend_stock: bool) -> bool:
        """Whether an epoch may be made with it.

        Args:
            spend_stock: also with what is left in stock while no more comes: ``require`` does so,
                where the keys themselves are not in doubt.
        """
        if self.state is not LinkState.DOWN or self.on_trial or self.proven:
            return True
        return spend_stock and not self.awaits_trial and self.reason is not Reason.QBER_HIGH


def combined_state(
    paths: Sequence[tuple[LinkState, Reason]], at_least: int
) -> tuple[LinkState, Reason]:
    """The state of all paths together, and why.

    Args:
        paths: state and reason of each, in the configuration's order; at least one.
        at_least: how many of them an epoch needs.
    """
    states = [state for state, _ in paths]
    down = [reason for state, reason in paths if state is LinkState.DOWN]
    weak = [reason for state, reason in paths if state is LinkState.DEGRADED]
    if len(paths) - len(down) < at_least:
        return LinkState.DOWN, down[0] if down else Reason.TOO_FEW_SOURCES
    if not down and not weak:
        return LinkState.HEALTHY, paths[states.index(LinkState.HEALTHY)][1]
    return LinkState.DEGRADED, (down or weak)[0]


@dataclass(slots=True)
class Suspects:
    """Paths whose keys may be what made epochs fail.

    Attributes:
        strikes: how often each failed alone.
        joint_failures: epochs of several paths that failed since the last one that committed.
    """

    strikes: dict[str, int] = field(default_factory=dict)
    joint_failures: int = 0

    def failed(self, used: Collection[str], at_least: int) -> tuple[str, ...]:
        """An epoch made from these paths failed for a key.

        Returns:
            Those to blame; none where others must be tried first to find out.
        """
        # Where fewer cannot be offered, they cannot be told apart.
        blamed = tuple(used) if len(used) <= at_least else ()
        if len(used) > 1:
            self.joint_failures += 1
        for name in used:
            self.strikes[name] = self.strikes.get(name, 0) + (name in blamed)
        return blamed

    def confirmed(self, used: Iterable[str]) -> None:
        """An epoch made from these paths committed."""
        names = tuple(used)
        if len(names) > 1:
            self.joint_failures = 0
        for name in names:
            self.strikes.pop(name, None)


def choose_paths(
    paths: Sequence[PathView],
    suspects: Suspects,
    *,
    at_least: int,
    keys_per_epoch: int,
    running: Collection[str] | None,
    barred: Collection[str] = (),
    spend_stock: bool = False,
) -> tuple[str, ...]:
    """Which paths the next hybrid epoch is made from, in the configuration's order.

    A path that is not in the running epoch comes in only with the keys of two epochs, or one that
    trickles would come and go. A path on trial, or under suspicion, has no more others with it than
    an epoch needs: so it is told who is to blame, and what stays broken does not use up the others.

    Args:
        paths: every path, in the configuration's order.
        suspects: what is known of failures.
        at_least: how many it takes.
        keys_per_epoch: keys that each contributes.
        running: paths of the running epoch, none of them for a classical-only one; None where no
            epoch runs yet.
        barred: paths that failed in this very epoch.
        spend_stock: see :meth:`PathView.usable`.

    Returns:
        Names; empty where there are too few.
    """

    def wanted_keys(path: PathView) -> int:
        at_once = path.on_trial or path.awaits_trial or running is None or path.name in running
        return keys_per_epoch if at_once else 2 * keys_per_epoch

    able = [
        path
        for path in paths
        if path.name not in barred
        and path.usable(spend_stock=spend_stock)
        and path.keys_available >= wanted_keys(path)
    ]
    on_trial = [path.name for path in able if path.on_trial]
    steady = [path.name for path in able if not path.on_trial]
    clean = [name for name in steady if name not in suspects.strikes]
    doubtful = sorted(
        (name for name in steady if name in suspects.strikes),
        key=lambda name: suspects.strikes[name],
    )
    examined = (on_trial or doubtful)[:1]
    others = [name for name in (*clean, *doubtful, *on_trial) if name not in examined]
    chosen = [*examined, *others[: at_least - 1]] if examined else clean
    if len(chosen) < at_least:
        return ()
    return tuple(path.name for path in paths if path.name in chosen)


class CombinedReservation:
    """Keys lent to one epoch attempt by several stocks. Ended as a whole, once.

    Attributes:
        paths: names of the paths, in the order of their keys.
    """

    def __init__(self, parts: Sequence[tuple[str, Reservation]]) -> None:
        """Of each path's name and reservation, in the order of the OFFER."""
        self.paths = tuple(name for name, _ in parts)
        self._parts = [part for _, part in parts]

    @property
    def keys(self) -> tuple[QkdKey, ...]:
        """The keys in the order of the OFFER; empty once it has ended."""
        return tuple(key for part in self._parts for key in part.keys)

    @property
    def key_ids(self) -> tuple[str, ...]:
        """Their IDs in the same order, which stay."""
        return tuple(key_id for part in self._parts for key_id in part.key_ids)

    @property
    def held(self) -> bool:
        """The peer has said of one of the keys that it holds it."""
        return any(part.held for part in self._parts)

    def offered(self, now: float) -> None:
        """The OFFER is about to be sent: every ID is burnt from here on.

        Raises:
            LocalProtocolError: key_spent, where an ID was burnt before; the OFFER must not be
                sent, and all keys are orphaned.
        """
        failure: LocalProtocolError | None = None
        for part in self._parts:
            try:
                part.offered(now)
            except LocalProtocolError as error:
                failure = error
        if failure is not None:
            self.orphaned(now)
            raise failure

    def confirmed(self, now: float) -> None:
        """The epoch committed."""
        for part in self._open():
            part.confirmed(now)

    def orphaned(self, now: float) -> None:
        """The epoch failed after its OFFER was sent."""
        for part in self._open():
            part.orphaned(now)

    def released(self, now: float) -> None:
        """No OFFER was sent: the keys go back into their stocks."""
        for part in self._parts:
            if part.state is ReservationState.RESERVED:
                part.released(now)

    def _open(self) -> Iterable[Reservation]:
        """Parts that still wait: a stock gives up on an offer by itself after a while."""
        return [part for part in self._parts if part.state is ReservationState.OFFERED]

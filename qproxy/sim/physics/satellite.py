"""How the loss to a satellite changes while it passes overhead.

A plain picture: the satellite moves on a straight line at its altitude, right over the station,
so that its distance is the hypotenuse of altitude and way from the zenith. The beam spreads with
distance, so the loss grows by 20 dB for ten times the distance. Air mass, weather, pointing and
daylight are left out; ``zenith_loss_db`` is what is left of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

#: Speed of the sub-satellite point in low orbit, in km/s.
GROUND_SPEED_KM_S: Final = 7.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Orbit:
    """When a satellite passes, and how.

    Attributes:
        altitude_km: over the station.
        zenith_loss_db: of the channel when it is right overhead.
        first_pass_s: when the first pass begins, from the start of the simulation.
        pass_duration_s: from rise to set.
        pass_interval_s: from the beginning of a pass to that of the next; longer than one.
    """

    altitude_km: float
    zenith_loss_db: float
    first_pass_s: float
    pass_duration_s: float
    pass_interval_s: float

    def __post_init__(self) -> None:
        if not 0 < self.pass_duration_s < self.pass_interval_s:
            raise ValueError("expected a pass_duration_s above 0 and below pass_interval_s")

    def place(self, elapsed_s: float) -> tuple[int, float]:
        """Passes that are over, and how far into the current one we are.

        Args:
            elapsed_s: since the start of the simulation.

        Returns:
            The number of passes begun before this one, and seconds since its beginning: more than
            ``pass_duration_s`` where it has set, 0 before the first.
        """
        since_first_s = elapsed_s - self.first_pass_s
        if since_first_s < 0:
            return 0, 0.0
        count, into_s = divmod(since_first_s, self.pass_interval_s)
        return int(count), into_s

    def in_sight(self, elapsed_s: float) -> bool:
        """Whether it is above the horizon."""
        return elapsed_s >= self.first_pass_s and self.place(elapsed_s)[1] < self.pass_duration_s

    def distance_km(self, into_s: float) -> float:
        """How far away it is that many seconds after it rose."""
        way_km = (into_s - self.pass_duration_s / 2) * GROUND_SPEED_KM_S
        return math.hypot(self.altitude_km, way_km)

    def loss_db(self, into_s: float) -> float:
        """Loss that many seconds after it rose."""
        return self.zenith_loss_db + 20 * math.log10(self.distance_km(into_s) / self.altitude_km)

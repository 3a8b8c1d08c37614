#!/usr/bin/env python3
"""Draw key rate and QBER over distance for the presets in configs/scenarios.

    pip install '.[report]'
    python docs/plots/key_rate.py

Writes key-rate.csv and key-rate.svg beside this file. The numbers are the simulator's own
(`qproxy.sim.physics.bb84`); the picture needs matplotlib, the numbers do not. The picture carries
the SHA-256 of the numbers it was drawn from, so that a test can tell whether it is of today's.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from qproxy.sim.physics.bb84 import Optics, fibre_loss_db, key_rate
from qproxy.sim.physics.satellite import Orbit

HERE = Path(__file__).resolve().parent
SCENARIOS = HERE.parents[1] / "configs" / "scenarios"
CSV, SVG = HERE / "key-rate.csv", HERE / "key-rate.svg"
LOSS_DB_PER_KM = 0.2
DISTANCES_KM = [*range(0, 211, 2)]
#: Secret bits per second below which a link is of no use, and the picture ends.
FLOOR_BPS = 10.0


@dataclass(frozen=True)
class Curve:
    """One source and receiver over any distance.

    Attributes:
        scenario: name of the preset.
        optics: its source and receiver.
        lengths_km: of the fibres it has, each length once.
        orbit: of its satellite, or None where it has fibres.
    """

    scenario: str
    optics: Optics
    lengths_km: tuple[float, ...] = ()
    orbit: Orbit | None = None


@dataclass(frozen=True)
class Point:
    """One row of the numbers.

    Attributes:
        scenario: name of the preset.
        link: ``fibre`` or ``satellite``.
        distance_km: length of the fibre, or how far away the satellite is.
        preset: whether the preset has a fibre of this length, or a pass that comes so near.
        key_rate_bps: secret key, in bits per second.
        qber: quantum bit error rate.
    """

    scenario: str
    link: str
    distance_km: float
    preset: bool
    key_rate_bps: float
    qber: float


def read_curves() -> list[Curve]:
    """What every preset is made of: all of them have one kind of span and one of optics."""
    curves = []
    for path in sorted(SCENARIOS.glob("*.yaml")):
        network = yaml.safe_load(path.read_text(encoding="utf-8"))["kme_sim"]["network"]
        spans: list[dict[str, Any]] = list(network["spans"].values())
        ((kind, name),) = {(span["type"], span.get("optics")) for span in spans}
        optics = Optics() if name is None else Optics(**network["optics"][name])
        if kind == "fibre":
            lengths = sorted({float(span["length_km"]) for span in spans})
            curves.append(Curve(path.stem, optics, lengths_km=tuple(lengths)))
        else:
            orbit = Orbit(**{key: spans[0][key] for key in Orbit.__dataclass_fields__})
            curves.append(Curve(path.stem, optics, orbit=orbit))
    return curves


def make_points(curves: list[Curve]) -> list[Point]:
    """Rate and QBER of each preset at every distance, and at those of its own fibres."""
    points = []
    for curve in curves:
        for link, distance_km, preset, loss_db in _distances(curve):
            rate = key_rate(curve.optics, loss_db)
            points.append(
                Point(curve.scenario, link, distance_km, preset, rate.secret_bps, rate.qber)
            )
    return points


def _distances(curve: Curve) -> Iterator[tuple[str, float, bool, float]]:
    """Kind, distance, whether it is the preset's own, and loss in dB."""
    if curve.orbit is None:
        for length_km in sorted({*map(float, DISTANCES_KM), *curve.lengths_km}):
            loss_db = fibre_loss_db(length_km, LOSS_DB_PER_KM)
            yield "fibre", length_km, length_km in curve.lengths_km, loss_db
        return
    half_s = curve.orbit.pass_duration_s / 2
    for step in range(51):
        into_s = half_s * (1 + step / 50)
        yield "satellite", curve.orbit.distance_km(into_s), True, curve.orbit.loss_db(into_s)


def encode_csv(points: list[Point]) -> str:
    """The numbers as CSV, with as many digits as mean anything."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["scenario", "link", "distance_km", "preset", "key_rate_bps", "qber"])
    for p in points:
        rate, qber = f"{p.key_rate_bps:.4g}", f"{p.qber:.4g}"
        writer.writerow([p.scenario, p.link, f"{p.distance_km:g}", int(p.preset), rate, qber])
    return file.getvalue()


def digest(text: str) -> str:
    """What the picture says it was drawn from."""
    return hashlib.sha256(text.encode()).hexdigest()


def draw(points: list[Point], path: Path) -> None:
    """Draw the picture. Needs matplotlib."""
    import matplotlib as mpl  # noqa: PLC0415 - the numbers do without it

    mpl.use("svg")
    mpl.rcParams |= {"svg.hashsalt": "qproxy", "svg.fonttype": "none", "font.size": 9}
    from matplotlib import pyplot as plt  # noqa: PLC0415

    figure, axes = plt.subplots(
        2, 2, sharex="col", sharey="row", figsize=(9, 7), width_ratios=[3, 1], layout="constrained"
    )
    figure.suptitle("SIMULATED: decoy-state BB84 over distance")
    columns = {"fibre": axes[:, 0], "satellite": axes[:, 1]}
    for number, scenario in enumerate(dict.fromkeys(point.scenario for point in points)):
        of_it = [p for p in points if p.scenario == scenario and p.key_rate_bps >= FLOOR_BPS]
        upper, lower = columns[of_it[0].link]
        far = [p.distance_km for p in of_it]
        color = f"C{number}"
        upper.plot(far, [p.key_rate_bps for p in of_it], color=color, label=scenario)
        lower.plot(far, [100 * p.qber for p in of_it], color=color)
        own = [p for p in of_it if p.preset and p.link == "fibre"]
        dots = {"marker": "o", "linestyle": "none", "color": color}
        upper.plot([p.distance_km for p in own], [p.key_rate_bps for p in own], **dots)
        lower.plot([p.distance_km for p in own], [100 * p.qber for p in own], **dots)
    axes[0, 0].set(yscale="log", ylabel="secret key (bit/s)", ylim=(FLOOR_BPS, None))
    axes[1, 0].set(xlabel="fibre at 0.2 dB/km (km)", ylabel="QBER (%)", ylim=(0, 12))
    axes[1, 1].set(xlabel="satellite, away (km)")
    for lower in axes[1]:
        lower.axhline(11.0, color="grey", linestyle=":", label="abort (11 %)")
    for panel in axes.flat:
        panel.grid(alpha=0.3)
        panel.legend(loc="upper right", fontsize=8)
    figure.savefig(
        path,
        metadata={
            "Date": None,
            "Description": f"SHA-256 of {CSV.name}: {digest(encode_csv(points))}",
        },
    )


def main() -> None:
    """Write both files."""
    points = make_points(read_curves())
    CSV.write_text(encode_csv(points), encoding="utf-8")
    draw(points, SVG)


if __name__ == "__main__":
    main()

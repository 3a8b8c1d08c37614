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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from qproxy.sim.physics.bb84 import Optics, fibre_loss_db, key_rate

HERE = Path(__file__).resolve().parent
SCENARIOS = HERE.parents[1] / "configs" / "scenarios"
CSV, SVG = HERE / "key-rate.csv", HERE / "key-rate.svg"
LOSS_DB_PER_KM = 0.2
DISTANCES_KM = [*range(0, 211, 2)]
#: Secret bits per second below which a link is of no use, and the picture ends.
FLOOR_BPS = 10.0


@dataclass(frozen=True)
class Curve:
    """One source and receiver over any length of fibre.

    Attributes:
        scenario: name of the preset.
        optics: source and receiver of its fibres.
        lengths_km: of the fibres it has, each length once.
    """

    scenario: str
    optics: Optics
    lengths_km: tuple[float, ...]


@dataclass(frozen=True)
class Point:
    """One row of the numbers.

    Attributes:
        scenario: name of the preset.
        length_km: of the fibre.
        preset: whether the preset has a fibre of this length.
        key_rate_bps: secret key, in bits per second.
        qber: quantum bit error rate.
    """

    scenario: str
    length_km: float
    preset: bool
    key_rate_bps: float
    qber: float


def read_curves() -> list[Curve]:
    """The presets that have fibres; a satellite's loss is not a matter of kilometres of it."""
    curves = []
    for path in sorted(SCENARIOS.glob("*.yaml")):
        network = yaml.safe_load(path.read_text(encoding="utf-8"))["kme_sim"]["network"]
        fibres = [span for span in network["spans"].values() if span["type"] == "fibre"]
        if not fibres:
            continue
        (name,) = {span.get("optics") for span in fibres}
        settings: dict[str, Any] = {} if name is None else network["optics"][name]
        lengths = sorted({float(span["length_km"]) for span in fibres})
        curves.append(Curve(path.stem, Optics(**settings), tuple(lengths)))
    return curves


def make_points(curves: list[Curve]) -> list[Point]:
    """Rate and QBER of each preset at every distance, and at those of its own fibres."""
    points = []
    for curve in curves:
        for length_km in sorted({*map(float, DISTANCES_KM), *curve.lengths_km}):
            rate = key_rate(curve.optics, fibre_loss_db(length_km, LOSS_DB_PER_KM))
            preset = length_km in curve.lengths_km
            points.append(Point(curve.scenario, length_km, preset, rate.secret_bps, rate.qber))
    return points


def encode_csv(points: list[Point]) -> str:
    """The numbers as CSV, with as many digits as mean anything."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["scenario", "length_km", "preset", "key_rate_bps", "qber"])
    for p in points:
        rate, qber = f"{p.key_rate_bps:.4g}", f"{p.qber:.4g}"
        writer.writerow([p.scenario, f"{p.length_km:g}", int(p.preset), rate, qber])
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

    figure, (upper, lower) = plt.subplots(2, 1, sharex=True, figsize=(7, 7), layout="constrained")
    for scenario in dict.fromkeys(point.scenario for point in points):
        of_it = [p for p in points if p.scenario == scenario and p.key_rate_bps >= FLOOR_BPS]
        own = [p for p in of_it if p.preset]
        (line,) = upper.plot(
            [p.length_km for p in of_it], [p.key_rate_bps for p in of_it], label=scenario
        )
        lower.plot([p.length_km for p in of_it], [100 * p.qber for p in of_it])
        style = {"marker": "o", "linestyle": "none", "color": line.get_color()}
        upper.plot([p.length_km for p in own], [p.key_rate_bps for p in own], **style)
        lower.plot([p.length_km for p in own], [100 * p.qber for p in own], **style)
    upper.set(yscale="log", ylabel="secret key (bit/s)", title="SIMULATED: decoy-state BB84")
    upper.set_ylim(bottom=FLOOR_BPS)
    lower.axhline(11.0, color="grey", linestyle=":", label="abort (11 %)")
    lower.set(xlabel="fibre at 0.2 dB/km (km)", ylabel="QBER (%)", ylim=(0, 12))
    for axes in (upper, lower):
        axes.grid(alpha=0.3)
        axes.legend(loc="upper right", fontsize=8)
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

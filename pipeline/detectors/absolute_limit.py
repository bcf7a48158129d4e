"""An absolute limit beside all that is learnt: the velocity of each row over its machine's limit, from fleet.yaml.

Evaluation by ISO 20816: the RMS of the velocity from 10 to 1000 Hz, in mm/s, against the boundary of zones C and D,
beyond which vibration is severe enough to damage the machine. A spectrum of acceleration is integrated in its bands.

Shape legend: B rows of a batch, F bins = A axes x bands, G = F + 1, R rows of the baseline table.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from pipeline.detectors.base import Arrays, Detector, Fitting, TrainingRows
from pipeline.detectors.baseline import BaselineTable
from pipeline.errors import ContractError
from pipeline.schema import FleetSpec, FloatN, LimitSpec
from pipeline.units import conversion, quantity_of

WHERE = "fleet.yaml"
HANN_NOISE_BANDWIDTH = 1.5  # lines that a line's power is spread over by the window (Harris, Proc. IEEE 66 (1978) 51)
EXAMPLE = "limits: {zones: iso20816-3-group2-rigid, amplitude: rms}, or the boundaries [A/B, B/C, C/D] in mm/s as zones"


class AbsoluteLimitDetector(Detector):
    """RMS velocity over the C/D boundary: 1.0 is the limit, of the axis that is nearest to it.

    The baselines of the detector hold what one unit of each bin is in limits, per machine: in service it needs neither
    fleet.yaml nor a machine's history. A machine without a limit scores 0.
    """

    name = "absolute_limit"
    matched = False

    def __init__(
        self,
        baselines: BaselineTable,
        batch_rows: int = 4096,
        device: torch.device | None = None,
        *,
        fleet: FleetSpec | None = None,
    ) -> None:
        super().__init__(baselines, batch_rows, device)
        self.axes, self.zones = 1, dict[str, list[float]]()
        if fleet is not None:
            self._take(fleet)

    def _take(self, fleet: FleetSpec) -> None:
        limits = limits_of(fleet)
        self.axes = len(fleet.axes or ("",))
        weight_F = velocity_weights(fleet, limits)
        machines = [*[None] * (1 + len(self.baselines.conditions)), *(machine for machine, _, _ in self.baselines.keys)]
        boundary_R = np.array([limits.boundary_of(machine) for machine in machines])
        scale_RG = np.ones((len(machines), len(weight_F) + 1), np.float32)
        with np.errstate(divide="ignore"):  # a bin outside of 10 to 1000 Hz, a machine without a limit: nothing
            scale_RG[:, :-1] = boundary_R[:, None] / weight_F
        self.baselines = replace(self.baselines, location=np.zeros_like(scale_RG), scale=scale_RG, log=False)
        self._tables = self.baselines.tables(self.device)
        stated = {"": limits.zones} | dict(limits.machines)
        self.zones = {machine: list(zones) for machine, zones in stated.items() if zones is not None}

    def fit(self, rows: TrainingRows, fitting: Fitting) -> dict[str, Any]:
        """Nothing to learn; tells how near to their limits healthy machines are."""
        scores = self.score(rows.validation, rows.validation_code)
        highest = float(np.percentile(scores, 99)) if len(scores) else 0.0
        fitting.say(f"99 % of the validation rows are below {highest:.2g} of their limit")
        history: dict[str, Any] = {"healthy_99": round(highest, 4), "zones": self.zones}
        if highest > 1:
            right = "are unit, amplitude and zones of fleet.yaml right?"
            history["warnings"] = [f"more than 1 % of the healthy rows are beyond their limit: {right}"]
        return history

    def score_batch(self, spectra_BF: torch.Tensor, relative_BG: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        """The axis with the highest velocity, in limits."""
        return self._power(relative_BG).sum(2).amax(1).sqrt()

    def explain_batch(self, spectra_BF: torch.Tensor, relative_BG: torch.Tensor) -> torch.Tensor:
        """Each bin's part of the power of the axis that counts, in limits; other axes have none."""
        power_BAF = self._power(relative_BG)
        counts_BA = torch.nn.functional.one_hot(power_BAF.sum(2).argmax(1), self.axes)
        score_B1 = self.score_batch(spectra_BF, relative_BG)[:, None].clamp_min(1e-300)
        return (power_BAF * counts_BA[:, :, None]).flatten(1) / score_B1

    def _power(self, relative_BG: torch.Tensor) -> torch.Tensor:
        return relative_BG[:, :-1].double().square().reshape(-1, self.axes, self.baselines.bins // self.axes)

    def arrays(self) -> Arrays:
        """None of its own: the limits stand in the baselines."""
        return {}

    def restore(self, arrays: Arrays, settings: dict[str, Any]) -> None:  # noqa: ARG002
        """Load settings."""
        self.axes, self.zones = int(settings["axes"]), dict(settings["zones"])

    def settings(self) -> dict[str, Any]:
        """Axes, and the zones of all machines ("") and of those that have their own, in mm/s."""
        return {"axes": self.axes, "zones": self.zones}


def limits_of(fleet: FleetSpec) -> LimitSpec:
    """The limits of a fleet.

    Raises:
        ContractError: fleet.yaml states none.
    """
    if fleet.limits is None:
        raise ContractError.of(
            "limits", got="none, with absolute_limit among the detectors of params.yaml", expected=EXAMPLE, where=WHERE
        )
    return fleet.limits


def velocity_weights(fleet: FleetSpec, limits: LimitSpec) -> FloatN:
    """RMS velocity in mm/s of one unit in each bin (F,); 0 outside of the limits' range of frequencies.

    Within a band the acceleration is taken as even: the velocity of a band from f1 to f2 is then that of a line at
    their geometric mean, v = a / (2 pi sqrt(f1 f2)), since the mean of 1 / f^2 over the band is 1 / (f1 f2).

    Raises:
        ContractError: numbers that are no magnitudes of acceleration or velocity, or bands without edges.

    >>> fleet = FleetSpec(bins=2, band_edges_hz=(90, 110, 2000), unit="m/s2")
    >>> velocity_weights(fleet, LimitSpec(zones=[1, 2, 3], amplitude="rms", highest_hz=110)).round(3).tolist()
    [1.6, 0.0]
    """
    if fleet.kind != "spectrum":
        raise ContractError.of("kind", got=fleet.kind, expected="spectrum, for limits of vibration", where=WHERE)
    if fleet.band_edges_hz is None:
        raise ContractError.of("band_edges_hz", got="none", expected="the bands in Hz, for limits", where=WHERE)
    quantity = quantity_of(fleet.unit, WHERE)
    if quantity not in ("acceleration", "velocity"):
        expected = "a unit of acceleration or velocity, for limits of vibration"
        raise ContractError.of("unit", got=f"{fleet.unit} ({quantity})", expected=expected, where=WHERE)
    edges = np.array(fleet.band_edges_hz, np.float64)
    low, high = np.maximum(edges[:-1], limits.lowest_hz), np.minimum(edges[1:], limits.highest_hz)
    inside = high > low
    if not inside.any():
        expected = f"bands between {limits.lowest_hz:g} and {limits.highest_hz:g} Hz, for limits of vibration"
        raise ContractError.of("band_edges_hz", got=f"{edges[0]:g} to {edges[-1]:g} Hz", expected=expected, where=WHERE)
    if quantity == "velocity":
        weight = np.full(len(low), conversion(fleet.unit, "mm/s", WHERE).scale)
    else:
        middle = np.sqrt(np.where(inside, low * high, 1.0))
        weight = conversion(fleet.unit, "mm/s2", WHERE).scale / (2 * np.pi * middle)
    weight *= np.where(inside, np.sqrt(np.clip((high - low) / np.diff(edges), 0.0, 1.0)), 0.0)
    return np.tile(weight * _rms_of_band(limits), len(fleet.axes or ("",)))


def _rms_of_band(limits: LimitSpec) -> float:
    """RMS of a band whose number is 1."""
    if limits.amplitude == "rms":
        return 1.0
    # a line's number is the amplitude of a sine; of several, their root mean square
    lines = 1.0 if limits.lines_per_band is None else limits.lines_per_band / HANN_NOISE_BANDWIDTH
    return float(np.sqrt(lines / 2))

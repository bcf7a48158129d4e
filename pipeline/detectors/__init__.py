"""Every detector is one kind of thing; `make_detector` and `load_detector` know them all by name."""

from __future__ import annotations

from pathlib import Path

import torch

from pipeline.detectors.absolute_limit import AbsoluteLimitDetector
from pipeline.detectors.base import Detector, Fitting, TaughtRows, TrainingRows, load_arrays, restore_detector
from pipeline.detectors.baseline import BaselineTable, fit_baselines
from pipeline.detectors.fleet_relative import FleetRelativeDetector
from pipeline.detectors.forest import ForestDetector
from pipeline.detectors.linear import DistanceDetector, EnergyDetector, PcaDetector
from pipeline.detectors.neural import AutoencoderDetector, NeuralDetector, VaeDetector
from pipeline.detectors.runs import RowOrder
from pipeline.detectors.window import WindowDetector
from pipeline.errors import ReleaseError, UserError
from pipeline.params import TrainParams
from pipeline.schema import FleetSpec

CLASSES: dict[str, type[Detector]] = {
    kind.name: kind
    for kind in (
        AutoencoderDetector,
        VaeDetector,
        WindowDetector,
        PcaDetector,
        EnergyDetector,
        DistanceDetector,
        ForestDetector,
        FleetRelativeDetector,
        AbsoluteLimitDetector,
    )
}


def make_detector(
    name: str, baselines: BaselineTable, params: TrainParams, device: torch.device, fleet: FleetSpec | None = None
) -> Detector:
    """A detector that is not yet fitted, with its section of params.yaml; `fleet` has the limits of absolute_limit."""
    rows = params.score_batch_rows
    if name == "autoencoder":
        return AutoencoderDetector(baselines, rows, device, params=params.autoencoder)
    if name == "vae":
        return VaeDetector(baselines, rows, device, params=params.vae)
    if name == "window_autoencoder":
        return WindowDetector(baselines, rows, device, params=params.window_autoencoder)
    if name == "pca":
        settings = params.pca
        kept, components = settings.variance_kept, settings.max_components
        return PcaDetector(baselines, rows, device, variance_kept=kept, max_components=components)
    if name == "energy_zscore":
        return EnergyDetector(baselines, rows, device, two_sided=params.energy_zscore.two_sided)
    if name == "squared_distance":
        return DistanceDetector(baselines, rows, device)
    if name == "isolation_forest":
        return ForestDetector(baselines, rows, device, params=params.isolation_forest)
    if name == "fleet_relative":
        return FleetRelativeDetector(baselines, rows, device)
    if name == "absolute_limit":
        return AbsoluteLimitDetector(baselines, rows, device, fleet=fleet or FleetSpec())
    raise UserError(f"detector: got {name!r}, expected one of {', '.join(CLASSES)}.")


def load_detector(folder: Path, device: torch.device | None = None) -> Detector:
    """Load any saved detector.

    Raises:
        ReleaseError: files missing or damaged, or a detector that this version does not know.
    """
    manifest, _ = load_arrays(folder)
    kind = CLASSES.get(manifest.get("detector", ""))
    if kind is None:
        raise ReleaseError(f"detector: got {manifest.get('detector')!r}, expected {', '.join(CLASSES)}, in {folder}.")
    return restore_detector(kind, folder, device)


def choose_device(wanted: str) -> torch.device:
    """`auto`: CUDA where there is one.

    Raises:
        UserError: `cuda` is asked for and absent.
    """
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise UserError("train.device: got cuda, expected a CUDA device on this machine; use auto or cpu.")
    return torch.device("cuda" if wanted == "cuda" or (wanted == "auto" and available) else "cpu")


__all__ = [
    "CLASSES",
    "BaselineTable",
    "Detector",
    "Fitting",
    "NeuralDetector",
    "RowOrder",
    "TaughtRows",
    "TrainingRows",
    "choose_device",
    "fit_baselines",
    "load_detector",
    "make_detector",
]

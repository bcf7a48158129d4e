"""What every detector is: fitted on healthy rows, it scores and explains rows, and is saved as weights and JSON.

Score contract: float64 of shape (N,), higher is more anomalous, alarm when `score > threshold`. A row's score does not
depend on its neighbours: rows are scored in padded batches of one fixed size, so that service and evaluation agree to
the bit.

Shape legend: N rows, B rows of a batch, F bins, G = F + 1 features (bins and energy), L latent.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open
from safetensors.numpy import save_file

from pipeline.detectors.baseline import BaselineTable, Tables, baselines_from
from pipeline.detectors.runs import IntNW, RowOrder
from pipeline.engine import FeatureRows, Precision, Run, autocast
from pipeline.errors import ContractError, ReleaseError
from pipeline.params import FineTuneParams
from pipeline.schema import FloatN, FloatNF, IntN
from pipeline.store import read_json, write_json, write_text

WEIGHTS = "weights.safetensors"
MANIFEST = "manifest.json"
Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class TaughtRows:
    """Rows (T,) before failures that teach networks their mode; `failure` and `mode` are codes, `modes` names."""

    spectra: FloatNF
    code: npt.NDArray[np.int32]
    failure: IntN
    mode: IntN
    modes: tuple[str, ...]


@dataclass(frozen=True)
class TrainingRows:
    """Healthy rows that fit a detector, and later ones of the same machines that say when to stop.

    `code` and `validation_code` are rows of the baseline table; `hour` is equal for neighbouring rows of one machine's
    hour (None: not known). `spectra` may be the map of a file: take it in parts, as `Detector.feature_rows` does.
    `taught` are no healthy rows: only a head on a network's code sees them. `order` and `validation_order` are machines
    and times, for detectors that see windows.
    """

    spectra: FloatNF
    code: npt.NDArray[np.int32]
    validation: FloatNF
    validation_code: npt.NDArray[np.int32]
    hour: IntN | None = None
    taught: TaughtRows | None = None
    order: RowOrder | None = None
    validation_order: RowOrder | None = None


@dataclass(frozen=True)
class Fitting:
    """How to fit: seed, device, where progress is told, and places on disk (None: nothing is written).

    `checkpoint` survives a killed process, `live` holds figures per epoch, `scratch` rows that do not fit into memory;
    `key` is what decides the result beside seed, rows and optimiser (parameters, version of the code). `base` is the
    folder of the same network of another release, whose weights are the first; None: they are random.
    """

    seed: int
    device: torch.device
    say: Callable[[str], None] = field(default=lambda _line: None)
    checkpoint: Path | None = None
    live: Path | None = None
    scratch: Path | None = None
    key: str = ""
    compile: bool = False
    base: Path | None = None
    fine_tune: FineTuneParams = field(default_factory=FineTuneParams)

    def run(self, name: str, precision: Precision) -> Run:
        """What the engine is told, for a network of this name."""
        return Run(
            name=name,
            seed=self.seed,
            device=self.device,
            precision=precision,
            say=self.say,
            checkpoint=self.checkpoint,
            live=self.live,
            key=self.key,
            compile=self.compile,
            fine_tunes=self.base is not None,
        )


class Detector(ABC):
    """One detector with the machine baselines that its input needs.

    Args:
        baselines: fitted on the same training rows.
        batch_rows: size of the padded batch in which rows are scored.
        device: where scores are computed.

    `precision` is that of matrix products, in fitting, calibration and service alike; networks set it before they fit.
    """

    name: ClassVar[str]
    matched: ClassVar[bool] = (
        True  # scores against a wider baseline than a row's own mean less, and are brought to its scale
    )
    precision: Precision = "float32"

    def __init__(self, baselines: BaselineTable, batch_rows: int = 4096, device: torch.device | None = None) -> None:
        self.baselines, self.batch_rows = baselines, batch_rows
        self.device = device or torch.device("cpu")
        self._tables: Tables = baselines.tables(self.device)

    @abstractmethod
    def fit(self, rows: TrainingRows, fitting: Fitting) -> dict[str, Any]:
        """Fit on healthy rows; returns the history (epochs, warnings) for the report."""

    @abstractmethod
    def score_batch(self, spectra_BF: torch.Tensor, relative_BG: torch.Tensor) -> torch.Tensor:
        """Scores (B,) of one batch."""

    @abstractmethod
    def explain_batch(self, spectra_BF: torch.Tensor, relative_BG: torch.Tensor) -> torch.Tensor:
        """Each bin's share (B, F) of the score; the shares of a row sum to its score."""

    @abstractmethod
    def arrays(self) -> Arrays:
        """Everything fitted, as arrays."""

    @abstractmethod
    def restore(self, arrays: Arrays, settings: dict[str, Any]) -> None:
        """The inverse of `arrays` and `settings`."""

    def settings(self) -> dict[str, Any]:
        """What is fitted but no array."""
        return {}

    @property
    def condition_column(self) -> str | None:
        """The context column that rows to score must tell their condition by; None: conditions make no difference."""
        return self.baselines.condition_column

    @property
    def rows_seen(self) -> int:
        """Rows that a row's score looks at: of a window, the row and those before it."""
        return 1

    def windows(self, rows: RowOrder) -> IntNW | None:  # noqa: ARG002
        """Places (N, W) of the rows that each row's score looks at; None: at the row alone."""
        return None

    def score(self, spectra_NF: FloatNF, code_N: npt.NDArray[np.int32], window_NW: IntNW | None = None) -> FloatN:
        """Score rows: float64 (N,), higher is more anomalous.

        Args:
            spectra_NF: magnitudes (N, F) in the sensor's unit, finite.
            code_N: rows of the baseline table, from `baselines.codes`.
            window_NW: places among the spectra of the rows of windows, one window for each score; from `windows`.

        Raises:
            ContractError: another number of bins than the detector was fitted on; windows missing or too many.
        """
        return self._in_batches(self.score_batch, spectra_NF, code_N, (), window_NW)

    def explain(self, spectra_NF: FloatNF, code_N: npt.NDArray[np.int32], window_NW: IntNW | None = None) -> FloatN:
        """Each bin's share of the score: float64 (N, F), rows sum to the score."""
        return self._in_batches(self.explain_batch, spectra_NF, code_N, (self.baselines.bins,), window_NW)

    def relative(self, spectra_NF: FloatNF, code_N: npt.NDArray[np.int32]) -> torch.Tensor:
        """(N, G) features relative to the baseline, on the device, for fitting."""
        relative = torch.empty((len(spectra_NF), self.baselines.bins + 1), device=self.device)
        for begin in range(0, len(spectra_NF), 65_536):
            part = slice(begin, begin + 65_536)
            spectra = torch.tensor(spectra_NF[part], device=self.device)
            codes = torch.tensor(code_N[part], device=self.device, dtype=torch.long)
            relative[part] = self.baselines.relative(spectra, codes, self._tables)
        return relative

    def feature_rows(self, rows: TrainingRows, fitting: Fitting, limit: float = float("inf")) -> FeatureRows:
        """The bins (N, F) relative to the baseline, held within +-limit, for the engine; memory is bounded.

        They are resident on the device where they fit, else in a file below `fitting.scratch`.

        Raises:
            ContractError: rows with NaN or infinity.
        """
        parts = (
            self.relative(rows.spectra[begin : begin + 65_536], rows.code[begin : begin + 65_536])[:, :-1].clamp_(
                -limit, limit
            )
            for begin in range(0, len(rows.spectra), 65_536)
        )
        size, bins = len(rows.spectra), self.baselines.bins
        return FeatureRows.gather(parts, size, bins, self.device, hour_N=rows.hour, scratch=fitting.scratch)

    def save(self, folder: Path) -> None:
        """Write weights.safetensors and manifest.json into an existing folder."""
        arrays = {name: np.ascontiguousarray(value) for name, value in self.arrays().items()}
        arrays["baseline.location"], arrays["baseline.scale"] = self.baselines.location, self.baselines.scale
        manifest = {
            "detector": self.name,
            "bins": self.baselines.bins,
            "batch_rows": self.batch_rows,
            "precision": self.precision,
            "baselines": self.baselines.to_json(),
            "settings": self.settings(),
        }
        # one metadata key: with several, their order and so the bytes differ from run to run
        save_file(arrays, folder / WEIGHTS, metadata={"hearken": json.dumps({"detector": self.name})})
        write_json(folder / MANIFEST, manifest)

    @torch.inference_mode()
    def _in_batches(
        self,
        compute: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        spectra_NF: FloatNF,
        code_N: npt.NDArray[np.int32],
        trailing: tuple[int, ...],
        window_NW: IntNW | None,
    ) -> FloatN:
        if spectra_NF.ndim != 2 or spectra_NF.shape[1] != self.baselines.bins:
            got, expected = spectra_NF.shape, f"(N, {self.baselines.bins})"
            raise ContractError.of("shape of spectra", got=got, expected=expected, where=f"detector {self.name}")
        seen = 1 if window_NW is None else window_NW.shape[1]
        if seen != self.rows_seen:
            expected = f"windows of {self.rows_seen}: this detector does not score single rows"
            raise ContractError.of("rows of a window", got=seen, expected=expected, where=f"detector {self.name}")
        count = len(spectra_NF) if window_NW is None else len(window_NW)
        out = np.empty((count, *trailing), np.float64)
        batch = torch.ones((self.batch_rows * seen, self.baselines.bins))
        codes = torch.zeros(self.batch_rows * seen, dtype=torch.long)
        for begin in range(0, count, self.batch_rows):
            end = min(begin + self.batch_rows, count)
            rows = np.s_[begin:end] if window_NW is None else window_NW[begin:end].reshape(-1)
            filled = (end - begin) * seen
            batch[filled:], codes[filled:] = 1.0, 0
            batch.numpy()[:filled], codes.numpy()[:filled] = spectra_NF[rows], code_N[rows]
            spectra, on_device = batch.to(self.device), codes.to(self.device)
            relative = self.baselines.relative(spectra, on_device, self._tables)
            with autocast(self.device, self.precision):
                computed = compute(spectra, relative)
            out[begin:end] = computed[: end - begin].double().cpu().numpy()
        return out


def load_arrays(folder: Path) -> tuple[dict[str, Any], Arrays]:
    """Manifest and arrays of a saved detector.

    Raises:
        ReleaseError: files missing or damaged.
    """
    try:
        manifest = read_json(folder / MANIFEST)
        with safe_open(folder / WEIGHTS, framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
    except (ContractError, OSError, ValueError) as error:
        raise ReleaseError(f"detector: got {error}, expected {WEIGHTS} and {MANIFEST}, in {folder}.") from None
    except Exception as error:  # safetensors raises its own type, which is no subclass of ValueError
        if type(error).__name__ != "SafetensorError":
            raise
        raise ReleaseError(f"detector: got damaged weights ({error}), expected safetensors, in {folder}.") from None
    return manifest, arrays


def restore_detector(kind: type[Detector], folder: Path, device: torch.device | None = None) -> Detector:
    """Load a saved detector of a known class.

    Raises:
        ReleaseError: files missing or damaged, or weights that do not belong to the manifest (another number of bins).
    """
    manifest, arrays = load_arrays(folder)
    try:
        location, scale = arrays.pop("baseline.location"), arrays.pop("baseline.scale")
        if location.shape[1] - 1 != manifest["bins"]:
            got, expected = f"baselines of {location.shape[1] - 1} bins", f"{manifest['bins']} as the manifest says"
            raise ReleaseError(f"detector: got {got}, expected {expected}, in {folder}.")
        baselines = baselines_from(manifest["baselines"], location, scale)
        detector = kind(baselines, int(manifest["batch_rows"]), device)
        detector.precision = manifest["precision"]
        detector.restore(arrays, manifest["settings"])
    except (KeyError, IndexError, RuntimeError, ValueError) as error:  # torch raises RuntimeError for a wrong shape
        got = " ".join(str(error).split())[:200]
        raise ReleaseError(f"detector: got {got}, expected weights that fit the manifest, in {folder}.") from None
    return detector


def write_history(folder: Path, history: dict[str, Any]) -> None:
    """history.json (all), and curve.json: one object per epoch, the form that `dvc plots` reads."""
    write_json(folder / "history.json", history)
    rows: Sequence[dict[str, Any]] = history.get("epochs", [])
    write_text(folder / "curve.json", json.dumps(list(rows), indent=1) + "\n")

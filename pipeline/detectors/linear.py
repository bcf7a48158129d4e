"""The baselines that every network is compared with: PCA, the energy z-score, the squared distance."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from pipeline.detectors.base import Arrays, Detector, Fitting, TrainingRows
from pipeline.detectors.baseline import BaselineTable

PART_ROWS = 65_536
REFERENCE_PERCENTILE = 99.0  # of healthy validation rows: the unit in which Q and T squared are added


class PcaDetector(Detector):
    """Principal components with Q (residual) and T squared (distance inside the subspace) in one index.

    Score = Q / Q_99 + T2 / T2_99 with the 99th percentiles of healthy validation rows (the combined index of Yue and
    Qin, Ind. Eng. Chem. Res. 40 (2001) 4403, eq. 13). The residual alone misses a fault that moves inside the subspace.
    """

    name = "pca"
    mean: torch.Tensor
    vectors: torch.Tensor
    values: torch.Tensor
    q_reference: torch.Tensor
    t_reference: torch.Tensor

    def __init__(
        self,
        baselines: BaselineTable,
        batch_rows: int = 4096,
        device: torch.device | None = None,
        *,
        variance_kept: float = 0.9,
        max_components: int = 32,
    ) -> None:
        super().__init__(baselines, batch_rows, device)
        self.variance_kept, self.max_components = variance_kept, max_components

    def fit(self, rows: TrainingRows, fitting: Fitting) -> dict[str, Any]:  # noqa: ARG002
        """Eigenvectors of the covariance; one pass over any number of rows, in parts."""
        count, bins = len(rows.spectra), self.baselines.bins
        total = torch.zeros(bins, dtype=torch.float64, device=self.device)
        squares = torch.zeros((bins, bins), dtype=torch.float64, device=self.device)
        for part in _parts(count):
            held = self.relative(rows.spectra[part], rows.code[part])[:, :-1].double().clamp(-10, 10)
            total += held.sum(0)
            squares += held.T @ held
        self.mean = total / count
        covariance = (squares - count * torch.outer(self.mean, self.mean)) / max(1, count - 1)
        values, vectors = torch.linalg.eigh(covariance)
        values, vectors = values.flip(0).clamp_min(1e-12), vectors.flip(1)
        kept = int(torch.searchsorted(torch.cumsum(values, 0) / values.sum(), self.variance_kept)) + 1
        components = max(1, min(kept, self.max_components, self.baselines.bins - 1 or 1))
        # float32 before anything is derived from them, so that a restored detector derives the same bits
        self.vectors, self.values = vectors[:, :components].contiguous().float(), values[:components].float()
        self.mean = self.mean.float()
        self._prepare()
        self.q_reference = self.t_reference = torch.tensor(1.0, device=self.device)
        parts = [
            self._q_and_t(self.relative(rows.validation[part], rows.validation_code[part]))
            for part in _parts(len(rows.validation))
        ]
        self.q_reference = _percentile(torch.cat([q for q, _ in parts]))
        self.t_reference = _percentile(torch.cat([t for _, t in parts]))
        explained = float(values[:components].sum() / values.sum())
        return {"components": components, "variance_explained": explained}

    def _prepare(self) -> None:
        vectors, values = self.vectors.double(), self.values.double()
        self._projector = (vectors @ vectors.T).float()
        # the symmetric root of the T squared matrix: its image of a row has one non-negative share per bin
        self._root = (vectors / values.sqrt() @ vectors.T).float()

    def _q_and_t(self, relative_NG: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        shares_q, shares_t = self._shares(relative_NG)
        return shares_q.sum(1), shares_t.sum(1)

    def _shares(self, relative_NG: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        centred = relative_NG[:, :-1] - self.mean
        residual = centred - centred @ self._projector
        return residual.square() / self.q_reference, (centred @ self._root).square() / self.t_reference

    def score_batch(self, spectra_BF: torch.Tensor, relative_BG: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        """Combined index."""
        q, t = self._q_and_t(relative_BG)
        return q.double() + t.double()

    def explain_batch(self, spectra_BF: torch.Tensor, relative_BG: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        """Residual and subspace shares per bin."""
        shares_q, shares_t = self._shares(relative_BG)
        return shares_q.double() + shares_t.double()

    def arrays(self) -> Arrays:
        """Mean, eigenvectors, eigenvalues and references."""
        named = {"mean": self.mean, "vectors": self.vectors, "values": self.values}
        named |= {"q_reference": self.q_reference, "t_reference": self.t_reference}
        return {name: value.cpu().numpy() for name, value in named.items()}

    def restore(self, arrays: Arrays, settings: dict[str, Any]) -> None:
        """Load arrays."""
        self.variance_kept, self.max_components = settings["variance_kept"], settings["max_components"]
        for name in ("mean", "vectors", "values", "q_reference", "t_reference"):
            setattr(self, name, torch.from_numpy(np.array(arrays[name])).to(self.device))
        self._prepare()

    def settings(self) -> dict[str, Any]:
        """Parameters."""
        return {"variance_kept": self.variance_kept, "max_components": self.max_components}


class EnergyDetector(Detector):
    """z-score of the log of the total energy against the machine's own; two-sided unless told otherwise."""

    name = "energy_zscore"

    def __init__(
        self,
        baselines: BaselineTable,
        batch_rows: int = 4096,
        device: torch.device | None = None,
        *,
        two_sided: bool = True,
    ) -> None:
        super().__init__(baselines, batch_rows, device)
        self.two_sided = two_sided

    def fit(self, rows: TrainingRows, fitting: Fitting) -> dict[str, Any]:  # noqa: ARG002
        """Nothing beyond the baselines."""
        return {}

    def score_batch(self, spectra_BF: torch.Tensor, relative_BG: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        """|z| of the energy."""
        z = relative_BG[:, -1].double()
        return z.abs() if self.two_sided else z

    def explain_batch(self, spectra_BF: torch.Tensor, relative_BG: torch.Tensor) -> torch.Tensor:
        """The score shared by the bins' parts of the energy."""
        power = spectra_BF.double().square().clamp_min(1e-300)
        return self.score_batch(spectra_BF, relative_BG)[:, None] * power / power.sum(1, keepdim=True)

    def arrays(self) -> Arrays:
        """None of its own."""
        return {}

    def restore(self, arrays: Arrays, settings: dict[str, Any]) -> None:  # noqa: ARG002
        """Load parameters."""
        self.two_sided = bool(settings["two_sided"])

    def settings(self) -> dict[str, Any]:
        """Parameters."""
        return {"two_sided": self.two_sided}


class DistanceDetector(Detector):
    """Squared distance from the machine's baseline: the sum over bins of squared robust z-scores."""

    name = "squared_distance"

    def fit(self, rows: TrainingRows, fitting: Fitting) -> dict[str, Any]:  # noqa: ARG002
        """Nothing beyond the baselines."""
        return {}

    def score_batch(self, spectra_BF: torch.Tensor, relative_BG: torch.Tensor) -> torch.Tensor:
        """Sum of squares over bins."""
        return self.explain_batch(spectra_BF, relative_BG).sum(1)

    def explain_batch(self, spectra_BF: torch.Tensor, relative_BG: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        """Squares per bin."""
        return relative_BG[:, :-1].double().square()

    def arrays(self) -> Arrays:
        """None of its own."""
        return {}

    def restore(self, arrays: Arrays, settings: dict[str, Any]) -> None:
        """Nothing to load."""


def _parts(rows: int) -> list[slice]:
    """Slices that cover rows; one at least, and none large."""
    return [slice(begin, begin + PART_ROWS) for begin in range(0, max(1, rows), PART_ROWS)]


def _percentile(values_N: torch.Tensor) -> torch.Tensor:
    """99th percentile as a tensor; numpy, since torch.quantile refuses more than 2^24 values."""
    value = float(np.percentile(values_N.cpu().numpy(), REFERENCE_PERCENTILE)) if len(values_N) else 1.0
    return torch.tensor(max(value, 1e-12), device=values_N.device)

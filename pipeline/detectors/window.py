"""An autoencoder over windows: consecutive spectra of one machine, whose course tells what none of them does alone.

Shape legend: N rows, B windows of a batch, W rows of a window, F bins, D = W * F, G = F + 1 features.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from pipeline.detectors.base import Fitting, TrainingRows
from pipeline.detectors.learned import NeuralDetector
from pipeline.detectors.networks import Activation
from pipeline.detectors.objectives import corrupted, mean_loss
from pipeline.detectors.runs import Intervals, IntNW, RowOrder, windows
from pipeline.detectors.window_networks import LstmDecoder, LstmEncoder, PlaneDecoder, PlaneEncoder
from pipeline.engine import FeatureRows
from pipeline.errors import ContractError
from pipeline.params import WindowParams

VALIDATION_BYTES = 2**30  # of windows that say when to stop and what is usual: more are thinned evenly


class WindowDetector(NeuralDetector):
    """Autoencoder of windows of `window` consecutive rows; a row's score is that of the window that ends with it.

    Runs are broken where `pipeline.detectors.runs.windows` says; a run's first row stands for the rows before it. Rows
    are relative to their own baselines, so a window may pass from one operating condition to another. What a row scores
    depends on the rows before it that are at hand, at most `window - 1` of its run.
    """

    name = "window_autoencoder"
    params: WindowParams
    intervals = Intervals({}, 1)

    @classmethod
    def default_params(cls) -> WindowParams:
        """LSTM over 8 rows."""
        return WindowParams()

    @property
    def rows_seen(self) -> int:
        """W."""
        return self.params.window

    @property
    def compiles(self) -> bool:
        """An LSTM is one kernel already, and breaks the graph of what is compiled around it."""
        return False

    def windows(self, rows: RowOrder) -> IntNW:
        """Places (N, W) of the rows of each row's window."""
        return windows(rows, self.rows_seen, self.params.max_gap, self.intervals)

    def encoder_outputs(self) -> int:
        """The code."""
        return self.params.latent

    def layers(self) -> tuple[nn.Module, nn.Module]:
        """Encoder (B, D) -> (B, L) and decoder (B, L) -> (B, D)."""
        rows, bins, settings = self.rows_seen, self.baselines.bins, self.params
        if settings.architecture == "lstm":
            hidden, latent = settings.hidden, settings.latent
            return LstmEncoder(rows, bins, hidden, latent), LstmDecoder(rows, bins, hidden, latent)
        activation: Activation = settings.activation
        shape = (rows, bins, settings.channels, settings.kernel, settings.latent, activation)
        return PlaneEncoder(*shape), PlaneDecoder(*shape)

    def loss(self, x_BF: torch.Tensor, epoch: int, noise: torch.Generator | None) -> dict[str, torch.Tensor]:  # noqa: ARG002
        """Mean loss over windows (B, D) and their numbers; what was corrupted must be restored."""
        seen_BD = x_BF if noise is None else corrupted(x_BF, self.params.noise, noise)
        output_BD = self.decode(self.activate(self._encoded(seen_BD)))
        return {"loss": mean_loss(self.params.loss, x_BF, output_BD, self.network.bin_log_variance())}

    def fit(self, rows: TrainingRows, fitting: Fitting) -> dict[str, Any]:
        """As of all networks; usual intervals are those of the training rows.

        Raises:
            ContractError: rows without machines and times.
        """
        self.intervals = Intervals.of(_order(rows.order))
        return super().fit(rows, fitting)

    def feature_rows(self, rows: TrainingRows, fitting: Fitting, limit: float = float("inf")) -> FeatureRows:
        """The training rows, from which windows are gathered batch by batch."""
        plain = super().feature_rows(rows, fitting, limit)
        return plain.in_windows(self.windows(_order(rows.order)))

    def healthy_rows(self, rows: TrainingRows) -> torch.Tensor:
        """Windows (n, D) of validation rows, of all or evenly thinned."""
        window_NW = self.windows(_order(rows.validation_order))
        most = VALIDATION_BYTES // (4 * self.rows_seen * self.baselines.bins)
        relative_NF = super().healthy_rows(rows)
        picked = torch.from_numpy(window_NW[:: max(1, -(-len(window_NW) // most))]).to(relative_NF.device)
        return relative_NF[picked].flatten(1)

    def rows_of(self, relative_BG: torch.Tensor) -> torch.Tensor:
        """(B, D) windows of features that follow one another."""
        return relative_BG[:, :-1].reshape(-1, self.width)

    def per_bin(self, share_BF: torch.Tensor) -> torch.Tensor:
        """(B, F): a bin's shares in all rows of the window."""
        return share_BF.view(len(share_BF), self.rows_seen, -1).sum(1)

    def settings(self) -> dict[str, Any]:
        """Parameters, and usual intervals."""
        intervals = {"machines": dict(self.intervals.machines), "usual": self.intervals.usual}
        return super().settings() | {"intervals_us": intervals}

    def restore(self, arrays: dict[str, Any], settings: dict[str, Any]) -> None:
        """Load all."""
        told = settings["intervals_us"]
        self.intervals = Intervals({name: int(value) for name, value in told["machines"].items()}, int(told["usual"]))
        super().restore(arrays, settings)


def _order(order: RowOrder | None) -> RowOrder:
    if order is None:
        got, expected = "rows without machine and time", "both: windows are made of them"
        raise ContractError.of("training rows", got=got, expected=expected, where=WindowDetector.name)
    return order

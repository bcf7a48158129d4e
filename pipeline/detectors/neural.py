"""Autoencoder and variational autoencoder over baseline-relative log spectra, and the loop that trains them.

Shape legend: N rows, B rows of a batch, F bins, G = F + 1 features, L latent.
"""

from __future__ import annotations

import math
import time
from abc import abstractmethod
from typing import Any

import numpy as np
import torch
from torch import nn

from pipeline.detectors.base import Arrays, Detector, Fitting, TrainingRows
from pipeline.detectors.baseline import BaselineTable
from pipeline.detectors.linear import _percentile
from pipeline.detectors.networks import ConvolutionalDecoder, ConvolutionalEncoder
from pipeline.errors import HearkenError
from pipeline.params import AutoencoderParams, VaeParams

INPUT_LIMIT = 10.0  # robust deviations; a failing machine may be hundreds away, and the encoder never saw that
SAY_EVERY_S = 5.0
MIN_STEPS = 32  # per epoch: a few hundred rows in one batch of 1,024 would hardly move the weights
MIN_BATCH = 32


class NeuralDetector(Detector):
    """What both autoencoders share: the training loop, and a score of residual and latent distance.

    The residual of a bin counts in units of its healthy variance: a bin that the network explains badly on healthy
    rows says little. Residual Q and latent distance T2 (Mahalanobis) are added in units of their 99th percentile on
    healthy validation rows: the residual alone misses a fault that moves along the learned surface.
    """

    network_seed_offset = 0

    def __init__(
        self,
        baselines: BaselineTable,
        batch_rows: int = 4096,
        device: torch.device | None = None,
        *,
        params: AutoencoderParams | None = None,
    ) -> None:
        super().__init__(baselines, batch_rows, device)
        self.params = params or self.default_params()
        self.encoder: ConvolutionalEncoder
        self.decoder: ConvolutionalDecoder
        self._statistics: dict[str, torch.Tensor] = {}

    @classmethod
    @abstractmethod
    def default_params(cls) -> AutoencoderParams:
        """Parameters where none are given."""

    @abstractmethod
    def encoder_outputs(self) -> int:
        """Width of the encoder's head."""

    @abstractmethod
    def loss(self, x_BF: torch.Tensor, epoch: int, noise: torch.Generator | None) -> dict[str, torch.Tensor]:
        """Terms of the loss, each a mean over rows; `loss` is what is minimised; no noise: at the mean."""

    def code(self, x_BF: torch.Tensor) -> torch.Tensor:
        """(B, L) deterministic codes."""
        outputs: torch.Tensor = self.encoder(x_BF.clamp(-INPUT_LIMIT, INPUT_LIMIT))
        return outputs[:, : self.params.latent]

    def build(self) -> None:
        """Make the layers (their weights come from torch's current random state)."""
        settings, bins = self.params, self.baselines.bins
        self.encoder = ConvolutionalEncoder(bins, settings.channels, settings.kernel, self.encoder_outputs())
        self.decoder = ConvolutionalDecoder(bins, settings.channels, settings.kernel, settings.latent)
        self.encoder.to(self.device)
        self.decoder.to(self.device)

    def fit(self, rows: TrainingRows, fitting: Fitting) -> dict[str, Any]:
        """Train with early stopping on the validation rows; the best weights are kept.

        Raises:
            HearkenError: the loss is no longer a finite number.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(fitting.seed)
            self.build()
        train = self.relative(rows.spectra, rows.code)[:, :-1].contiguous().clamp_(-INPUT_LIMIT, INPUT_LIMIT)
        validation = self.relative(rows.validation, rows.validation_code)[:, :-1].contiguous()
        history = self._train(train, validation, fitting)
        with torch.inference_mode():
            self._fit_statistics(train, validation)
        return history

    def _train(self, train: torch.Tensor, validation: torch.Tensor, fitting: Fitting) -> dict[str, Any]:
        settings = self.params.optimiser
        parameters = [*self.encoder.parameters(), *self.decoder.parameters()]
        optimiser = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay)
        batch_rows = min(settings.batch_rows, max(MIN_BATCH, len(train) // MIN_STEPS))
        steps = max(1, math.ceil(len(train) / batch_rows))
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimiser, settings.learning_rate, total_steps=steps * settings.max_epochs + 1, pct_start=0.1
        )
        shuffle = torch.Generator().manual_seed(fitting.seed + 1)
        noise = torch.Generator(self.device).manual_seed(fitting.seed + 2)
        best, best_epoch, best_weights, epochs, said = math.inf, 0, self._weights(), [], time.perf_counter()
        trained_s = 0.0
        for epoch in range(1, settings.max_epochs + 1):
            start = time.perf_counter()
            sums: dict[str, torch.Tensor | float] = {}
            order = torch.randperm(len(train), generator=shuffle).to(self.device)
            for picked in order.split(batch_rows):
                terms = self.loss(train.index_select(0, picked), epoch, noise)
                optimiser.zero_grad(set_to_none=True)
                terms["loss"].backward()
                optimiser.step()
                schedule.step()
                for name, value in terms.items():  # summed on the device: no synchronisation per step
                    sums[name] = sums.get(name, 0.0) + value.detach() * len(picked)
            trained_s += time.perf_counter() - start
            means = {name: float(value) / len(train) for name, value in sums.items()}
            if not math.isfinite(means["loss"]):
                raise HearkenError(f"{self.name}: the training loss is {means['loss']} in epoch {epoch}.")
            watched = self._validation_terms(validation, settings.max_epochs)
            entry = {"epoch": epoch, "train_loss": means.pop("loss"), "validation_loss": watched["loss"], **means}
            epochs.append({name: float(f"{value:.6g}") for name, value in entry.items()})
            if time.perf_counter() - said > SAY_EVERY_S or epoch == settings.max_epochs:
                said = time.perf_counter()
                speed = epoch * len(train) / max(trained_s, 1e-9)
                left = (settings.max_epochs - epoch) * len(train) / speed
                fitting.say(
                    f"epoch {epoch}/{settings.max_epochs}  train {entry['train_loss']:.4f}  "
                    f"validation {watched['loss']:.4f}  {speed:,.0f} rows/s  at most {left:.0f} s left"
                )
            if watched["loss"] < best * (1 - settings.min_improvement):
                best, best_epoch, best_weights = watched["loss"], epoch, self._weights()
            elif epoch - best_epoch >= settings.patience:
                break
        self._load_weights(best_weights)
        cap_hit = len(epochs) == settings.max_epochs and best_epoch > settings.max_epochs - settings.patience
        warnings = []
        if cap_hit:
            advice = f"train.{self.name}.optimiser.max_epochs ({settings.max_epochs})"
            warnings.append(f"The validation loss still fell when training stopped at {advice}.")
        return {"epochs": epochs, "best_epoch": best_epoch, "cap_hit": cap_hit, "warnings": warnings}

    @torch.inference_mode()
    def _validation_terms(self, validation: torch.Tensor, epoch: int) -> dict[str, float]:
        sums: dict[str, float] = {}
        for part in validation.clamp(-INPUT_LIMIT, INPUT_LIMIT).split(65_536):
            for name, value in self.loss(part, epoch, None).items():
                sums[name] = sums.get(name, 0.0) + float(value) * len(part)
        return {name: value / max(1, len(validation)) for name, value in sums.items()} or {"loss": 0.0}

    def _fit_statistics(self, train: torch.Tensor, validation: torch.Tensor) -> None:
        """Healthy residual variance per bin, latent mean and root of the inverse covariance, references."""
        codes = torch.cat([self.code(part) for part in train.split(65_536)]).double()
        mean = codes.mean(0)
        covariance = torch.cov((codes - mean).T).reshape(self.params.latent, -1)
        shrunk = covariance + 0.01 * covariance.diagonal().mean().clamp_min(1e-9) * torch.eye(
            self.params.latent, device=self.device, dtype=torch.float64
        )
        values, vectors = torch.linalg.eigh(shrunk)
        self._statistics = {
            "latent_mean": mean.float(),
            "latent_root": (vectors / values.clamp_min(1e-12).sqrt() @ vectors.T).float(),
            "residual_variance": torch.ones(self.baselines.bins, device=self.device),
            "q_reference": torch.tensor(1.0, device=self.device),
            "t_reference": torch.tensor(1.0, device=self.device),
        }
        residual = torch.cat([part - self.decoder(self.code(part)) for part in validation.split(65_536)])
        variance = residual.clamp(-INPUT_LIMIT, INPUT_LIMIT).square().mean(0)
        self._statistics["residual_variance"] = variance.clamp_min(0.05 * float(variance.mean()) + 1e-12)
        parts = [self._q_and_t(part) for part in validation.split(65_536)]
        self._statistics["q_reference"] = _percentile(torch.cat([q for q, _ in parts]))
        self._statistics["t_reference"] = _percentile(torch.cat([t for _, t in parts]))

    def _q_and_t(self, x_BF: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        values, codes = self._statistics, self.code(x_BF)
        residual = x_BF - self.decoder(codes)
        q = (residual.square() / values["residual_variance"]).mean(1) / values["q_reference"]
        t = ((codes - values["latent_mean"]) @ values["latent_root"]).square().sum(1) / values["t_reference"]
        return q, t

    def score_batch(self, spectra_BF: torch.Tensor, relative_BG: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        """Q / Q_99 + T2 / T2_99."""
        q, t = self._q_and_t(relative_BG[:, :-1])
        return q.double() + t.double()

    def explain_batch(self, spectra_BF: torch.Tensor, relative_BG: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        """Residual shares per bin; the latent part goes to the bins by how far the code moves the reconstruction."""
        x, values = relative_BG[:, :-1], self._statistics
        codes = self.code(x)
        reconstruction = self.decoder(codes)
        weighted = (x - reconstruction).square() / values["residual_variance"]
        shares = weighted.double() / (self.baselines.bins * values["q_reference"].double())
        moved = (reconstruction - self.decoder(values["latent_mean"][None])).double().square() + 1e-12
        t = ((codes - values["latent_mean"]) @ values["latent_root"]).square().sum(1) / values["t_reference"]
        total: torch.Tensor = shares + t.double()[:, None] * moved / moved.sum(1, keepdim=True)
        return total

    @torch.inference_mode()
    def reconstruct(self, spectra_NF: np.ndarray, code_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Original and reconstruction (N, F), in robust deviations from the row's baseline; for reports."""
        x = self.relative(spectra_NF, code_N)[:, :-1]
        return x.cpu().numpy(), self.decoder(self.code(x)).cpu().numpy()

    def _modules(self) -> dict[str, nn.Module]:
        return {"encoder": self.encoder, "decoder": self.decoder}

    def _weights(self) -> dict[str, torch.Tensor]:
        return {
            f"{part}.{name}": value.detach().clone()
            for part, module in self._modules().items()
            for name, value in module.state_dict().items()
        }

    def _load_weights(self, weights: dict[str, torch.Tensor]) -> None:
        for part, module in self._modules().items():
            prefix = f"{part}."
            module.load_state_dict({k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)})

    def arrays(self) -> Arrays:
        """Layers and statistics."""
        statistics = {f"statistics.{name}": value for name, value in self._statistics.items()}
        return {name: value.cpu().numpy() for name, value in (self._weights() | statistics).items()}

    def restore(self, arrays: Arrays, settings: dict[str, Any]) -> None:
        """Load layers and statistics."""
        self.params = type(self.params).model_validate(settings["params"])
        self.build()
        tensors = {name: torch.from_numpy(np.array(value)).to(self.device) for name, value in arrays.items()}
        self._load_weights(tensors)
        prefix = "statistics."
        self._statistics = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

    def settings(self) -> dict[str, Any]:
        """Parameters."""
        return {"params": self.params.model_dump(mode="json")}


class AutoencoderDetector(NeuralDetector):
    """Convolutional autoencoder, mean squared error."""

    name = "autoencoder"

    @classmethod
    def default_params(cls) -> AutoencoderParams:
        """64 bins -> 12-D, kernel 5, stride 2."""
        return AutoencoderParams()

    def encoder_outputs(self) -> int:
        """The code."""
        return self.params.latent

    def loss(self, x_BF: torch.Tensor, epoch: int, noise: torch.Generator | None) -> dict[str, torch.Tensor]:  # noqa: ARG002
        """Mean squared error over bins and rows."""
        return {"loss": (x_BF - self.decoder(self.encoder(x_BF))).square().mean()}


class VaeDetector(NeuralDetector):
    """Variational autoencoder (Kingma and Welling 2014) with the same layers; scores at the mean, so no noise.

    Loss per row and bin: half the squared error + beta * KL / F, with beta rising over `warmup_epochs` so that the code
    does not collapse to the prior before the decoder has learned to use it.
    """

    name = "vae"
    params: VaeParams

    @classmethod
    def default_params(cls) -> VaeParams:
        """As the autoencoder, with beta."""
        return VaeParams()

    def encoder_outputs(self) -> int:
        """Mean and log variance."""
        return 2 * self.params.latent

    def loss(self, x_BF: torch.Tensor, epoch: int, noise: torch.Generator | None) -> dict[str, torch.Tensor]:
        """Reconstruction and KL, apart and weighted together."""
        mean, log_variance = self.encoder(x_BF).chunk(2, dim=1)
        log_variance = log_variance.clamp(-8.0, 4.0)
        code = mean
        if noise is not None:
            draw = torch.randn(mean.shape, generator=noise, device=mean.device)
            code = mean + draw * (0.5 * log_variance).exp()
        reconstruction = 0.5 * (x_BF - self.decoder(code)).square().mean()
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1).mean() / x_BF.shape[1]
        beta = self.params.beta * min(1.0, epoch / max(1, self.params.warmup_epochs))
        return {"loss": reconstruction + beta * kl, "reconstruction": reconstruction, "kl": kl}

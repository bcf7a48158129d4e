"""The two networks: an autoencoder and a variational autoencoder over baseline-relative spectra.

Shape legend: N rows, B rows of a batch, F bins, L latent, D draws.
"""

from __future__ import annotations

from typing import Any

import torch

from pipeline.detectors.learned import SCORED_LIMIT, Evidence, NeuralDetector
from pipeline.detectors.objectives import (
    CODE_LOG_VARIANCE,
    INPUT_LIMIT,
    annealed,
    bin_losses,
    bounded,
    corrupted,
    kl_divergence,
    mean_loss,
)
from pipeline.params import AutoencoderParams, VaeParams

ACTIVE_VARIANCE = 0.01  # over rows, of the mean of a code dimension that is in use (Burda et al., ICLR 2016, section 5)
DRAWS_SEED = 20_140_114  # the same draws for every detector, row and machine

__all__ = ["AutoencoderDetector", "NeuralDetector", "VaeDetector"]


class AutoencoderDetector(NeuralDetector):
    """Autoencoder: the code that loses least, learned from rows that may be corrupted first (denoising)."""

    name = "autoencoder"
    params: AutoencoderParams

    @classmethod
    def default_params(cls) -> AutoencoderParams:
        """Convolutional, 12 numbers."""
        return AutoencoderParams()

    def encoder_outputs(self) -> int:
        """The code."""
        return self.params.latent

    def loss(self, x_BF: torch.Tensor, epoch: int, noise: torch.Generator | None) -> dict[str, torch.Tensor]:  # noqa: ARG002
        """Mean loss over bins and rows; what was corrupted must be restored."""
        seen_BF = x_BF if noise is None else corrupted(x_BF, self.params.noise, noise)
        output_BF = self.decode(self._encoded(seen_BF))
        return {"loss": mean_loss(self.params.loss, x_BF, output_BF, self.network.bin_log_variance())}


class VaeDetector(NeuralDetector):
    """Variational autoencoder (Kingma and Welling, ICLR 2014) with the same layers.

    Loss per row and bin: reconstruction + beta * KL / F, with beta annealed so that the code does not collapse to the
    prior before the decoder has learned to use it. Scores draw nothing: codes are taken at their mean, or for
    `score: elbo` at `draws` points of a standard normal distribution that were drawn once. All rows share them, so that
    a row's score does not depend on where it stands.
    """

    name = "vae"
    params: VaeParams

    @classmethod
    def default_params(cls) -> VaeParams:
        """As the autoencoder, with beta."""
        return VaeParams()

    def build(self) -> None:
        """Layers, and the fixed draws (D, L)."""
        super().build()
        drawn = torch.randn(self.params.draws, self.params.latent, generator=torch.Generator().manual_seed(DRAWS_SEED))
        # saved with the weights: another version of torch may draw other numbers
        self.network.register_buffer("draws_DL", drawn.to(self.device))

    def encoder_outputs(self) -> int:
        """Mean and log variance."""
        return 2 * self.params.latent

    def distribution(self, x_BF: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and bounded log variance (B, L) of the codes of rows within INPUT_LIMIT."""
        mean_BL, raw_BL = self._encoded(x_BF).chunk(2, dim=1)
        return mean_BL, bounded(raw_BL, CODE_LOG_VARIANCE)

    def loss(self, x_BF: torch.Tensor, epoch: int, noise: torch.Generator | None) -> dict[str, torch.Tensor]:
        """Reconstruction and KL, apart and weighted together; an evaluation has the whole beta and no noise."""
        if noise is None:
            mean_BL, log_variance_BL = self.distribution(x_BF)
            reconstruction = self._expected_losses(x_BF, mean_BL, log_variance_BL)[0].mean()
            beta = self.params.beta
        else:
            mean_BL, log_variance_BL = self.distribution(corrupted(x_BF, self.params.noise, noise))
            draw_BL = torch.randn(mean_BL.shape, generator=noise, device=mean_BL.device)
            output_BF = self.decode(mean_BL + draw_BL * (0.5 * log_variance_BL).exp())
            reconstruction = mean_loss(self.params.loss, x_BF, output_BF, self.network.bin_log_variance())
            beta = self.params.beta * self._annealed(epoch)
        kl = kl_divergence(mean_BL, log_variance_BL).sum() / x_BF.numel()
        return {"loss": reconstruction + beta * kl, "reconstruction": reconstruction, "kl": kl}

    def _annealed(self, epoch: int) -> float:
        settings = self.params
        if self.fine_tunes:  # the decoder uses its code already: without the whole beta it would have to unlearn
            return 1.0
        return annealed(
            settings.annealing,
            epoch,
            warmup_epochs=settings.warmup_epochs,
            cycles=settings.cycles,
            max_epochs=settings.optimiser.max_epochs,
        )

    def _expected_losses(
        self, x_BF: torch.Tensor, mean_BL: torch.Tensor, log_variance_BL: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Losses of the bins (B, F), and the output at the mean.

        Losses are a mean over the fixed draws where `elbo` scores with them, else those at the mean.
        """
        loss, log_variance_F = self.params.loss, self.network.bin_log_variance()
        output_BF = self.decode(mean_BL)
        draws_DL = self.network.get_buffer("draws_DL")
        if self.params.score != "elbo" or not len(draws_DL):
            return bin_losses(loss, x_BF, output_BF, log_variance_F), output_BF
        deviation_BL = (0.5 * log_variance_BL).exp()
        total_BF = torch.zeros_like(x_BF)
        for draw_L in draws_DL:
            drawn_BF = self.decode(mean_BL + draw_L * deviation_BL)
            total_BF = total_BF + bin_losses(loss, x_BF, drawn_BF, log_variance_F)
        return total_BF / len(draws_DL), output_BF

    def evidence(self, x_BF: torch.Tensor) -> Evidence:
        """For `elbo` the two terms of the negative ELBO, in nats; what all rows share is left out.

        The KL divergence counts whole: beta decides what the network learns, not how likely a row is.
        """
        if self.params.score != "elbo":
            return super().evidence(x_BF)
        mean_BL, log_variance_BL = self.distribution(x_BF.clamp(-INPUT_LIMIT, INPUT_LIMIT))
        losses_BF, output_BF = self._expected_losses(x_BF.clamp(-SCORED_LIMIT, SCORED_LIMIT), mean_BL, log_variance_BL)
        log_variance_F = self.network.bin_log_variance()
        if log_variance_F is not None:
            losses_BF = losses_BF - 0.5 * log_variance_F
        return Evidence(losses_BF.clamp_min(0.0), kl_divergence(mean_BL, log_variance_BL).sum(1), output_BF)

    def _is_regularised(self) -> bool:
        return True  # by the KL divergence

    def _code_facts(self, codes_NL: torch.Tensor) -> dict[str, Any]:
        """How many code dimensions are in use."""
        active = int((codes_NL.double().var(0) > ACTIVE_VARIANCE).sum())
        return {"active_units": active, "code_dimensions": self.params.latent}

    def _findings(self, found: dict[str, Any]) -> list[str]:
        """A collapsed posterior, with what to change."""
        if found["active_units"]:
            return []
        settings = self.params
        how = {
            "none": "set annealing: cyclical",
            "linear": f"raise warmup_epochs ({settings.warmup_epochs}) or set annealing: cyclical",
            "cyclical": f"raise cycles ({settings.cycles})",
        }[settings.annealing]
        return [
            f"Posterior collapse: none of the {settings.latent} code dimensions is in use, every row is reconstructed "
            f"alike; lower train.{self.name}.beta ({settings.beta}), or {how}."
        ]

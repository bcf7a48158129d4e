"""The two networks: an autoencoder and a variational autoencoder over baseline-relative spectra.

Shape legend: N rows, B rows of a batch, F bins, L latent, D draws.
"""

from __future__ import annotations

from typing import Any, cast

import torch

from pipeline.detectors.base import Fitting, TrainingRows
from pipeline.detectors.codes import (
    PROJECTIONS_SEED,
    activated,
    layer_contraction,
    only_layer,
    projected_contraction,
    sparsity,
    winners,
    winning,
    winning_level,
)
from pipeline.detectors.learned import CODE_ROWS, SCORED_LIMIT, Evidence, NeuralDetector
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
from pipeline.engine import FeatureRows, Processes
from pipeline.errors import UserError
from pipeline.params import AutoencoderParams, NetworkParams, VaeParams

ACTIVE_VARIANCE = 0.01  # over rows, of the mean of a code dimension that is in use (Burda et al., ICLR 2016, section 5)
DRAWS_SEED = 20_140_114  # the same draws for every detector, row and machine

__all__ = ["AutoencoderDetector", "NeuralDetector", "VaeDetector"]


class AutoencoderDetector(NeuralDetector):
    """Autoencoder: the code that loses least, learned from rows that may be corrupted first (denoising).

    What holds the code beside its width (`sparse`, `contractive`, `winner_take_all`) is a term of the loss per row and
    bin, or, for winners, what the decoder gets to see: in training the largest values of a batch, in scores what
    reaches the level that this share of training rows reaches, so that a row's score does not depend on its batch.
    """

    name = "autoencoder"
    params: AutoencoderParams

    @classmethod
    def default_params(cls) -> AutoencoderParams:
        """Convolutional, 12 numbers."""
        return AutoencoderParams()

    def encoder_outputs(self) -> int:
        """The code."""
        return self.params.latent

    @property
    def compiles(self) -> bool:
        """A deep encoder's contraction is a derivative itself, and compiled networks have no second ones."""
        return self.params.contractive is None or only_layer(self.network.encoder) is not None

    def build(self) -> None:
        """Layers, and the levels that winners reach."""
        super().build()
        if self.params.winner_take_all is not None:
            self.network.register_buffer("winning_level", torch.zeros(self.params.latent, device=self.device))

    def activate(self, outputs_BO: torch.Tensor) -> torch.Tensor:
        """The code, of winners alone where they take all."""
        code_BL = activated(self.params.code_of, outputs_BO)
        if self.params.winner_take_all is None:
            return code_BL
        return winning(code_BL, self.network.get_buffer("winning_level"))

    def loss(self, x_BF: torch.Tensor, epoch: int, noise: torch.Generator | None) -> dict[str, torch.Tensor]:  # noqa: ARG002
        """Mean loss over bins and rows, with what holds the code; what was corrupted must be restored."""
        settings, held = self.params, dict[str, torch.Tensor]()
        seen_BF = x_BF if noise is None else corrupted(x_BF, settings.noise, noise)
        if settings.contractive is not None:
            code_BL, contraction_B = self._contracted(seen_BF, settings.contractive.projections, noise)
            held["contraction"] = settings.contractive.weight * contraction_B.mean()
        else:
            code_BL = activated(settings.code_of, self._encoded(seen_BF))
        if settings.sparse is not None:
            held["sparsity"] = settings.sparse.beta * sparsity(settings.code_of, code_BL, settings.sparse.target)
        if settings.winner_take_all is not None:
            code_BL = winners(code_BL, settings.winner_take_all.share)
        loss = mean_loss(settings.loss, x_BF, self.decode(code_BL), self.network.bin_log_variance())
        if not held:
            return self._taught({"loss": loss}, noise)
        terms = {name: value / self.width for name, value in held.items()}
        return self._taught({"loss": loss + sum(terms.values()), "reconstruction": loss, **terms}, noise)

    def _contracted(
        self, seen_BF: torch.Tensor, projections: int, noise: torch.Generator | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes (B, L) and the squared norm (B,) of their Jacobian; an evaluation always has the same projections."""
        layer, name = only_layer(self.network.encoder), self.params.code_of
        if layer is not None:
            code_BL = activated(name, self._encoded(seen_BF))
            return code_BL, layer_contraction(name, layer.weight, code_BL)
        signs = noise or torch.Generator(seen_BF.device).manual_seed(PROJECTIONS_SEED)
        with torch.inference_mode(False), torch.enable_grad():
            row_BF = seen_BF.clone().requires_grad_()
            code_BL = activated(name, self._encoded(row_BF))
            norm_B = projected_contraction(code_BL, row_BF, projections, signs, differentiable=noise is not None)
        return code_BL, norm_B

    def layer_settings(self, params: NetworkParams) -> dict[str, Any]:
        """As of all networks, and what is applied to the code."""
        return super().layer_settings(params) | {"code_activation": cast(AutoencoderParams, params).code_of}

    def fit(self, rows: TrainingRows, fitting: Fitting) -> dict[str, Any]:
        """As of all networks.

        Raises:
            UserError: several processes, and an objective that counts over a whole batch.
        """
        of_a_batch = [name for name in ("sparse", "winner_take_all") if getattr(self.params, name) is not None]
        if of_a_batch and (count := Processes.here().count) > 1:
            got = f"{count} processes with train.{self.name}.{of_a_batch[0]}"
            raise UserError(f"train: got {got}, which counts over whole batches; expected one process.")
        return super().fit(rows, fitting)

    def _is_regularised(self) -> bool:
        return self.params.is_regularised

    def _what_holds_a_code(self) -> str:
        return "noise, sparse, contractive or winner_take_all"

    def _fit_statistics(self, train: FeatureRows, healthy_NF: torch.Tensor) -> dict[str, Any]:
        """As of all networks, after the levels that winners reach."""
        if self.params.winner_take_all is not None:
            step = max(1, len(train) // CODE_ROWS)
            codes_NL = torch.cat([activated("relu", self._encoded(part[::step])) for part in train.parts()])
            level_L = winning_level(codes_NL, self.params.winner_take_all.share)
            self.network.get_buffer("winning_level").copy_(level_L)
        return super()._fit_statistics(train, healthy_NF)


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
        return self._taught({"loss": reconstruction + beta * kl, "reconstruction": reconstruction, "kl": kl}, noise)

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

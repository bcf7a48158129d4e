"""Optimisers and learning-rate schedules, as parameters name them."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from pipeline.params import OptimiserParams

WARM_UP_SHARE = 0.1  # of one_cycle: up from a 25th of the learning rate, then down to nearly nothing
FIRST_SHARE, LAST_SHARE = 1 / 25, 1e-4 / 25
SGD_MOMENTUM = 0.9
HIGH_BETA, LOW_BETA = 0.95, 0.85  # AdamW's first beta falls while one_cycle rises


def make_optimiser(parameters: Iterable[nn.Parameter], settings: OptimiserParams) -> torch.optim.Optimizer:
    """An optimiser with one kernel per step where torch has one (`fused`)."""
    chosen, rate, decay = list(parameters), settings.learning_rate, settings.weight_decay
    match settings.name:
        case "adamw":
            return torch.optim.AdamW(chosen, lr=rate, weight_decay=decay, fused=True)
        case "sgd":
            momentum = SGD_MOMENTUM if settings.momentum is None else settings.momentum
            return torch.optim.SGD(chosen, lr=rate, weight_decay=decay, momentum=momentum, fused=True)
        case "rmsprop":
            return torch.optim.RMSprop(chosen, lr=rate, weight_decay=decay, momentum=settings.momentum or 0.0)
        case "adagrad":
            return torch.optim.Adagrad(chosen, lr=rate, weight_decay=decay)


class Schedule:
    """Sets the learning rate from the share of the training that is done: nothing to save, whatever the batch.

    `one_cycle` is Smith's (Super-convergence, 2018) with cosine flanks, as torch's OneCycleLR anneals them.
    """

    def __init__(self, optimiser: torch.optim.Optimizer, settings: OptimiserParams) -> None:
        self.optimiser, self.settings = optimiser, settings
        self._beta = settings.name == "adamw" and settings.schedule == "one_cycle"

    def set(self, epochs_done: float) -> None:
        """The learning rate after so many epochs (a fraction counts)."""
        rate = self.settings.learning_rate * rate_share(epochs_done, self.settings)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
            if self._beta:
                height = _height(epochs_done / self.settings.max_epochs)
                group["betas"] = (HIGH_BETA + (LOW_BETA - HIGH_BETA) * height, group["betas"][1])


def rate_share(epochs_done: float, settings: OptimiserParams) -> float:
    """The learning rate after so many epochs as a share of the configured one.

    >>> cosine = OptimiserParams(schedule="cosine", max_epochs=10)
    >>> rate_share(0, cosine), rate_share(5, cosine), rate_share(10, cosine)
    (1.0, 0.5, 0.0)
    >>> [round(rate_share(done, OptimiserParams(max_epochs=10)), 3) for done in (0, 0.5, 1, 5.5, 10)]
    [0.04, 0.52, 1.0, 0.5, 0.0]
    >>> rate_share(25, OptimiserParams(schedule="step", step_epochs=10, step_factor=0.5, max_epochs=30))
    0.25
    """
    done = min(1.0, epochs_done / settings.max_epochs)
    match settings.schedule:
        case "one_cycle":
            low = FIRST_SHARE if done < WARM_UP_SHARE else LAST_SHARE
            return low + (1 - low) * _height(done)
        case "cosine":
            return round(0.5 * (1 + math.cos(math.pi * done)), 12)
        case "step":
            return settings.step_factor ** int(epochs_done // settings.step_epochs)
        case "constant":
            return 1.0


def _height(done: float) -> float:
    """0 at the start of one_cycle, 1 at the end of the warm-up, 0 at the end of the training."""
    if done < WARM_UP_SHARE:
        return 0.5 * (1 - math.cos(math.pi * done / WARM_UP_SHARE))
    return 0.5 * (1 + math.cos(math.pi * (done - WARM_UP_SHARE) / (1 - WARM_UP_SHARE)))

"""What a training is told: who it is, where it runs, and where it leaves its traces."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from pipeline.engine.precision import Precision

Loss = Callable[[torch.Tensor, int, torch.Generator | None], dict[str, torch.Tensor]]
"""Terms of the loss of a batch (B, F), each a mean over its rows; the term `loss` is minimised.

The second argument is the epoch, from 1; the third the noise of training, None for an evaluation, which draws nothing.
"""


def silent(_line: str) -> None:
    """Told lines, and keeps none."""


@dataclass(frozen=True)
class Run:
    """One training.

    `name` stands in messages; `seed` decides the order of rows and the noise (the weights come with the network);
    `checkpoint` is a folder that survives a killed process (None: nothing is kept); `key` is what decides the result
    beside what the engine sees itself, such as the parameters of the loss and the version of the code; `live` the
    folder of DVCLive's figures per epoch; `fine_tunes`: the first weights have been trained before.
    """

    name: str
    seed: int
    device: torch.device
    precision: Precision = "float32"
    say: Callable[[str], None] = silent
    checkpoint: Path | None = None
    live: Path | None = None
    key: str = ""
    compile: bool = False
    fine_tunes: bool = False

    @property
    def epochs_setting(self) -> str:
        """The setting that says how many epochs there are at most."""
        return "train.fine_tune.max_epochs" if self.fine_tunes else f"train.{self.name}.optimiser.max_epochs"

"""Known results: the project's autoencoder with a head that learns a few failures, and what it says of other failures.

Shape legend: N rows, B rows of a batch, F bins, L latent, K rows before the failures that are known.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch.nn import functional

from pipeline.detectors import Detector, Fitting, TrainingRows
from pipeline.detectors.latent import Tail
from pipeline.detectors.networks import DenseStack
from pipeline.detectors.neural import AutoencoderDetector
from pipeline.detectors.objectives import INPUT_LIMIT
from pipeline.params import Params
from pipeline.rows import Rows
from pipeline.schema import FleetSpec, FloatN
from pipeline.train import train_detector
from pipeline.training_rows import divide, material_of

HEAD_WIDTH = 16
FAULTY_PART = 4  # of a batch: as many known faulty rows are drawn beside a quarter of it
STRENGTH = 0.01  # C of the logistic regression: 64 bins, and rows that are far from independent
WAYS = ("plain", "shaped", "head", "both", "logistic")
Scores = dict[str, FloatN]


class LabelledAutoencoder(AutoencoderDetector):
    """The project's autoencoder, whose code also tells known faulty rows from healthy ones.

    Its loss is the mean of the autoencoder's and of the head's: alpha .5 of reconstruction and labels. Without known
    rows it is the project's autoencoder, weight for weight.
    """

    faulty_KF: torch.Tensor | None = None

    def knows(self, faulty_KF: torch.Tensor) -> LabelledAutoencoder:
        """Rows (K, F) before known failures, in robust deviations."""
        self.faulty_KF = faulty_KF.clamp(-INPUT_LIMIT, INPUT_LIMIT)
        return self

    def build(self) -> None:
        """Layers, the head last: encoder and decoder begin as they do without it."""
        super().build()
        if self.faulty_KF is not None:
            self.network.head = DenseStack([self.params.latent, HEAD_WIDTH, 1], "gelu")

    def loss(self, x_BF: torch.Tensor, epoch: int, noise: torch.Generator | None) -> dict[str, torch.Tensor]:
        """Reconstruction, and the cross-entropy of healthy and known faulty rows, each kind as heavy."""
        terms = super().loss(x_BF, epoch, noise)
        if self.faulty_KF is None:
            return terms
        drawn_KF = self.faulty_KF
        if noise is not None:
            picked = torch.randint(len(drawn_KF), (max(1, len(x_BF) // FAULTY_PART),), generator=noise)
            drawn_KF = drawn_KF[picked]
        healthy = functional.softplus(self.network.head(self._encoded(x_BF))).mean()
        faulty = functional.softplus(-self.network.head(self._encoded(drawn_KF))).mean()
        labels = 0.5 * (healthy + faulty)
        return {"loss": 0.5 * terms["loss"] + 0.5 * labels, "labels": labels}

    @torch.inference_mode()
    def suspicion(self, relative_NF: torch.Tensor) -> FloatN:
        """The head's score (N,) float64, higher is more anomalous: minus the log of how healthy it calls a row."""
        logit_N = self.network.head(self.code(relative_NF))[:, 0]
        return np.asarray(functional.softplus(logit_N.double()).numpy())


@dataclass(frozen=True)
class Known:
    """What may be learned from: healthy rows with their roles, and healthy later ones that say what is usual."""

    spec: FleetSpec
    fitting: Rows
    fitting_role: np.ndarray
    calibration: Rows


def relative_of(detector: Detector, rows: Rows) -> torch.Tensor:
    """The bins (N, F) in robust deviations from each row's baseline."""
    return detector.relative(rows.spectra, detector.baselines.codes(rows.keys))[:, :-1]


def scored_by_all(
    known: Known, faulty: Mapping[str, Rows], judged: Rows, params: Params, seed: int
) -> tuple[Scores, Scores]:
    """Scores of the calibration rows and of the judged rows, by way: `plain`, then `shaped/few`, `head/few`, ...

    - `plain`: the project's autoencoder, which knows no failure.
    - `shaped`: the same score of the network that learned labels too.
    - `head`: what its head says. `both`: the rarer of `shaped` and `head` among calibration rows.
    - `logistic`: a logistic regression of the bins on the same labels.

    Args:
        known: who trains.
        faulty: rows before known failures, by the name of how many there are.
        judged: rows of other failures, and healthy ones.
        params: settings of the project.
        seed: of all weights and orders.
    """
    first, _ = train_detector("autoencoder", known.fitting, known.fitting_role, known.spec, params.train, seed=seed)
    assert isinstance(first, AutoencoderDetector)
    parts = divide(known.fitting.keys, known.fitting.time_us, known.fitting_role, params.train, seed)
    material = material_of(known.fitting, parts)
    code_N = first.baselines.codes(known.fitting.keys)
    training = TrainingRows(
        material.read(parts.train_N),
        code_N[parts.train_N],
        material.read(parts.validation_N),
        code_N[parts.validation_N],
        material.train_hour,
    )
    sets = {"calibration": known.calibration, "judged": judged}
    found: dict[str, Scores] = {part: {"plain": _score(first, rows)} for part, rows in sets.items()}
    relative = {part: relative_of(first, rows) for part, rows in sets.items()}
    healthy = first.relative(training.spectra, training.code)[:, :-1].clamp(-INPUT_LIMIT, INPUT_LIMIT).numpy()
    for name, rows in faulty.items():
        faulty_KF = relative_of(first, rows)
        detector = LabelledAutoencoder(first.baselines, first.batch_rows, params=params.train.autoencoder)
        detector.precision = first.precision
        detector.knows(faulty_KF).fit(training, Fitting(seed, torch.device("cpu")))
        regression = LogisticRegression(C=STRENGTH, class_weight="balanced", max_iter=500).fit(
            np.concatenate([healthy, detector.faulty_KF.numpy()]), np.repeat([0, 1], [len(healthy), len(faulty_KF)])
        )
        for part, rows_of in sets.items():
            held = relative[part].clamp(-INPUT_LIMIT, INPUT_LIMIT).numpy()
            found[part][f"shaped/{name}"] = _score(detector, rows_of)
            found[part][f"head/{name}"] = detector.suspicion(relative[part])
            found[part][f"logistic/{name}"] = regression.decision_function(held)
        pair = [f"{way}/{name}" for way in ("shaped", "head")]
        tails = {way: Tail.of(found["calibration"][way]) for way in pair}
        for scores in found.values():
            rarest = [tails[way](torch.from_numpy(scores[way])).numpy() for way in pair]
            scores[f"both/{name}"] = np.maximum(*rarest)
    return found["calibration"], found["judged"]


def _score(detector: Detector, rows: Rows) -> FloatN:
    return detector.score(rows.spectra, detector.baselines.codes(rows.keys))

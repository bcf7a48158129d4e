"""How odd an episode's mean spectrum is: a model of healthy vectors, and the evidence of each vector against it.

A vector is first told relative to its machine regime, in standard deviations that hold what differs between healthy
episodes and the noise of its rows. A model, principal components or an autoencoder, then splits it into what healthy
vectors do together and a residual. Three statistics look at both: their squared length (T squared and Q), which sees a
fault in many bins, the largest of them, which sees a single line, and the largest four.

A fault that grows for weeks hides in the spread that it causes itself. So how restless a machine regime is follows from
differences between neighbours (von Neumann 1941; Rice 1984: a slow trend cancels in them), and the statistics look at
means of four and of sixteen neighbours too, about a day and four days: noise averages out with the root of their
number, a fault does not (scan statistics: Glaz, Naus and Wallenstein 2001). A mean counts for those of its vectors that
lie in its direction themselves. Each of these views is measured in deviations of its own on healthy vectors, so that
none cries louder.

Shape legend: V vectors, R machine regimes, C conditions, G features, L latent, A = L + G coordinates,
Q vectors asked for, W vectors of a window.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch

from pipeline.cleaning.episodes import MAD_OF_NORMAL, MIN_SCALE, Float32, Vectors
from pipeline.detectors import BaselineTable, Fitting, TrainingRows
from pipeline.detectors.neural import AutoencoderDetector
from pipeline.params import AutoencoderParams, OptimiserParams
from pipeline.schema import BoolN, FloatN, IntN

ModelName = Literal["pca", "autoencoder"]
MIN_OF_REGIME = 8  # vectors that make a normal
MIN_OF_KIND = 200  # vectors of a condition that has a model of its own
SHRINK, MIN_SPREAD = 10.0, 0.5  # vectors' worth of the kind's spread; a machine is not much quieter than its kind
MIN_ROWS = 2  # of a vector that is evidence
FIT_CLIP = 5.0
LARGEST = 4
WINDOWS = (1, 4, 16)  # neighbouring vectors of a regime whose mean is looked at
IN_DIRECTION = 0.5  # of the length of a window's mean: as far in its direction lies a vector that it counts for
MEDIAN_VARIANCE = np.pi / 2  # of a median over that of a mean, for normal numbers
EPOCHS, BATCH, HIDDEN = 15, 256, 32  # of the autoencoder: vectors are thousands, not millions


def column_medians(values: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    """Median of each column: the numbers of np.median, which takes ten times as long for a hundred rows.

    >>> column_medians(np.array([[1.0, 8.0], [2.0, 6.0], [5.0, 7.0]])).tolist()
    [2.0, 7.0]
    """
    ordered = np.sort(np.ascontiguousarray(values.T), axis=1)
    return np.asarray((ordered[:, (len(values) - 1) // 2] + ordered[:, len(values) // 2]) / 2)


def robust_scale(values: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Scaled median absolute deviation of each column."""
    return np.asarray(MAD_OF_NORMAL * column_medians(np.abs(values - column_medians(values))), np.float64)


def restlessness(values: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Standard deviation of each column from the differences between neighbours, which a slow trend does not widen.

    >>> noise = np.random.default_rng(0).normal(size=(2000, 1))
    >>> trend = noise + np.linspace(0.0, 30.0, 2000)[:, None]
    >>> restlessness(noise).round(1), restlessness(trend).round(1), robust_scale(trend).round(1)
    (array([1.]), array([1.]), array([11.1]))
    """
    return np.asarray(MAD_OF_NORMAL / np.sqrt(2) * column_medians(np.abs(np.diff(values, axis=0))), np.float64)


def kinds_of(vectors: Vectors) -> npt.NDArray[np.int32]:
    """Kind (V,) of each vector: its condition where that has vectors enough for a model of its own, else all others."""
    condition_V = vectors.condition_V
    enough_C = np.bincount(condition_V, minlength=len(vectors.conditions)) >= MIN_OF_KIND
    return np.asarray(np.where(enough_C[condition_V], condition_V, -1), np.int32)


def standardised(vectors: Vectors, kind_V: npt.NDArray[np.int32], fits_V: BoolN) -> Float32:
    """Vectors (V, G) in standard deviations from their machine regime; NaN where that has no normal.

    The normal is the median of the regime's fitting vectors. The variance is that between healthy episodes of the kind,
    plus the noise of the vector's rows, plus the error of the median itself.

    Args:
        vectors: all of them.
        kind_V: of each.
        fits_V: which are taken for healthy, and may be learned from.
    """
    fits_V = fits_V & (vectors.rows_V >= MIN_ROWS)
    location_RG = np.full((len(vectors.condition_R), vectors.mean_VG.shape[1]), np.nan, np.float32)
    count_R = np.zeros(len(location_RG), np.int64)
    for regime, mine in _of_regimes(vectors, fits_V):
        location_RG[regime], count_R[regime] = column_medians(vectors.mean_VG[mine]), len(mine)
    shifted_VG = vectors.mean_VG - location_RG[vectors.regime_V]
    condition_V = vectors.condition_V
    for kind in np.unique(kind_V):
        of_kind = np.flatnonzero(kind_V == kind)
        learned = of_kind[fits_V[of_kind] & (count_R[vectors.regime_V[of_kind]] > 0)]
        if len(learned) < MIN_OF_REGIME:
            shifted_VG[of_kind] = np.nan
            continue
        noise_VG = vectors.within_CG[condition_V[of_kind]]
        total_G = np.maximum(robust_scale(shifted_VG[learned]) ** 2, MIN_SCALE**2)
        rows = np.median(vectors.rows_V[learned])
        typical_G = np.median(vectors.within_CG[condition_V[learned]], axis=0) / rows
        between_G = np.maximum(total_G - typical_G, 0.05 * total_G)
        variance_VG = between_G + noise_VG / vectors.rows_V[of_kind, None]
        count_V1 = np.maximum(count_R[vectors.regime_V[of_kind]], 1)[:, None]
        variance_VG = variance_VG + MEDIAN_VARIANCE * (between_G + typical_G) / count_V1
        shifted_VG[of_kind] /= np.sqrt(variance_VG)
    return shifted_VG


def _of_regimes(vectors: Vectors, fits_V: BoolN) -> Iterator[tuple[int, IntN]]:
    """Each machine regime that has a normal, with its fitting vectors."""
    index_V = np.flatnonzero(fits_V)
    order = index_V[np.argsort(vectors.regime_V[index_V], kind="stable")]
    bounds = np.searchsorted(vectors.regime_V[order], np.arange(len(vectors.condition_R) + 1))
    for regime in np.flatnonzero(np.diff(bounds) >= MIN_OF_REGIME).tolist():
        yield regime, order[bounds[regime] : bounds[regime + 1]]


class ResidualModel(Protocol):
    """Splits standardised vectors into what healthy ones do together and a residual."""

    def coordinates(self, z_VG: Float32) -> Float32:
        """(V, A): the code, then the residual."""
        ...


@dataclass(frozen=True)
class Components:
    """Principal components of the correlation of healthy vectors."""

    vectors_GL: Float32

    def coordinates(self, z_VG: Float32) -> Float32:
        """Scores on the components, and what is left."""
        code_VL = z_VG @ self.vectors_GL
        return np.concatenate([code_VL, z_VG - code_VL @ self.vectors_GL.T], axis=1)


@dataclass(frozen=True)
class Autoencoder:
    """An autoencoder of healthy vectors."""

    detector: AutoencoderDetector

    @torch.inference_mode()
    def coordinates(self, z_VG: Float32) -> Float32:
        """The code, and what the reconstruction leaves."""
        z = torch.from_numpy(np.ascontiguousarray(z_VG))
        code = self.detector.code(z)
        return np.asarray(torch.cat([code, z - self.detector.decode(code)], dim=1).numpy())


def fit_model(name: ModelName, z_VG: Float32, components: int, seed: int) -> ResidualModel:
    """Fit on healthy vectors, each number held within FIT_CLIP."""
    held_VG = np.clip(z_VG, -FIT_CLIP, FIT_CLIP)
    if name == "pca":
        values, vectors = np.linalg.eigh((held_VG.T @ held_VG).astype(np.float64) / len(held_VG))
        kept = min(components, len(values) - 1, max(1, len(held_VG) // 4))
        return Components(vectors[:, ::-1][:, :kept].astype(np.float32))
    features = held_VG.shape[1]
    location, scale = np.zeros((1, features + 1), np.float32), np.ones((1, features + 1), np.float32)
    plain = BaselineTable((), (), None, location, scale, (), 1e-30, log=False)
    optimiser = OptimiserParams(max_epochs=EPOCHS, batch_rows=BATCH)
    settings = AutoencoderParams(architecture="dense", layers=(HIDDEN,), latent=components, optimiser=optimiser)
    detector = AutoencoderDetector(plain, device=torch.device("cpu"), params=settings)
    last = max(1, len(held_VG) // 5)
    order = np.random.default_rng(seed).permutation(len(held_VG))
    train, validation = held_VG[order[last:]], held_VG[order[:last]]
    zeros = np.zeros(len(held_VG), np.int32)
    detector.fit(TrainingRows(train, zeros[last:], validation, zeros[:last]), Fitting(seed, torch.device("cpu")))
    return Autoencoder(detector)


def evidence(
    vectors: Vectors, kind_V: npt.NDArray[np.int32], fits_V: BoolN, null_V: BoolN, name: ModelName, size: int, seed: int
) -> FloatN:
    """Evidence (V,) of each vector against a model of the fitting ones, in robust deviations of the null ones.

    The unit is the wider half of the healthy distribution of each statistic in its kind: the middle 68 % of it, which
    contamination below a tenth hardly moves. NaN where there is no normal to compare with.

    Args:
        vectors: all of them.
        kind_V: of each.
        fits_V: learned from.
        null_V: taken for healthy, and not learned from; where too few, the fitting ones.
        name: of the model.
        size: components, or latent dimensions.
        seed: of the autoencoder.
    """
    z_VG = standardised(vectors, kind_V, fits_V)
    known_V = np.isfinite(z_VG[:, 0]) & (vectors.rows_V >= MIN_ROWS)
    evidence_V = np.full(len(known_V), np.nan)
    for kind in np.unique(kind_V):
        seen = np.flatnonzero(known_V & (kind_V == kind))
        fitting = fits_V[seen]
        if fitting.sum() < 2 * MIN_OF_REGIME:
            continue
        model = fit_model(name, z_VG[seen[fitting]], size, seed)
        regime_V = vectors.regime_V[seen]
        x_VA = _levelled(model.coordinates(z_VG[seen]), regime_V, vectors.rows_V[seen], fitting)
        null = null_V[seen] if null_V[seen].sum() >= 2 * MIN_OF_REGIME else fitting
        asked = np.flatnonzero(~fitting | null)  # nobody asks how odd the others are: they were learned from
        views = [_of_width(x_VA, regime_V, asked, null[asked], width) for width in WINDOWS]
        evidence_V[seen[asked]] = np.max(views, axis=0)
    return evidence_V


def _of_width(x_VA: Float32, regime_V: npt.NDArray[np.int32], asked_Q: IntN, null_Q: BoolN, width: int) -> FloatN:
    """Evidence (Q,) of the mean of `width` neighbours around each vector; -inf where it tells nothing of it."""
    if width == 1:
        return _oddness(x_VA[asked_Q], null_Q)
    window_QW, whole_Q = windows(regime_V, asked_Q, width)
    if (null_Q & whole_Q).sum() < 2 * MIN_OF_REGIME:
        return np.full(len(asked_Q), -np.inf)
    mean_QA = x_VA[window_QW[:, 0]]
    for step in range(1, width):
        mean_QA += x_VA[window_QW[:, step]]
    mean_QA /= width
    along_Q = np.einsum("qa,qa->q", x_VA[asked_Q], mean_QA)
    in_direction_Q = along_Q >= IN_DIRECTION * np.einsum("qa,qa->q", mean_QA, mean_QA)
    found_Q = _oddness(_in_units(mean_QA, null_Q & whole_Q), null_Q & whole_Q)
    return np.where(whole_Q & in_direction_Q, found_Q, -np.inf)


def _in_units(values_VA: Float32, fits_V: BoolN) -> Float32:
    return np.asarray(values_VA / np.maximum(robust_scale(values_VA[fits_V]), 1e-3), np.float32)


def _oddness(x_VA: Float32, null_V: BoolN) -> FloatN:
    """The largest of the three statistics (V,), each in deviations of the null's."""
    square_VA = np.square(x_VA)
    largest_VA = -np.partition(-square_VA, min(LARGEST, square_VA.shape[1]) - 1, axis=1)[:, :LARGEST]
    statistics = (square_VA.mean(axis=1), largest_VA.max(axis=1), largest_VA.mean(axis=1))
    found = [deviations(np.log(np.maximum(each, 1e-12)), null_V) for each in statistics]
    return np.asarray(np.max(found, axis=0), np.float64)


def windows(regime_V: npt.NDArray[np.int32], asked_Q: IntN, width: int) -> tuple[IntN, BoolN]:
    """The `width` vectors of a regime around each vector asked for (Q, W), and which regimes have as many (Q,).

    The vectors of a regime are in the order of time; at its ends the window is its first or last vectors.

    >>> around, whole = windows(np.array([0, 1, 0, 0, 0]), np.array([0, 1, 4]), 3)
    >>> around[whole].tolist(), whole.tolist()
    ([[0, 2, 3], [2, 3, 4]], [True, False, True])
    """
    order = np.argsort(regime_V, kind="stable")
    place_V = np.empty(len(order), np.int64)
    place_V[order] = np.arange(len(order))
    low_Q, high_Q = (np.searchsorted(regime_V[order], regime_V[asked_Q], side=side) for side in ("left", "right"))
    start_Q = np.clip(place_V[asked_Q] - width // 2, low_Q, np.maximum(high_Q - width, low_Q))
    window_QW = order[np.minimum(start_Q[:, None] + np.arange(width), len(order) - 1)]
    return window_QW, high_Q - low_Q >= width


def _levelled(
    coordinate_VA: Float32, regime_V: npt.NDArray[np.int32], rows_V: npt.NDArray[np.int32], fits_V: BoolN
) -> Float32:
    """Coordinates in units of what is usual for a vector of so many rows, and for its machine regime.

    A line that crosses from band to band with the speed is restless in one machine and quiet in the next: each regime's
    own restlessness counts, as far as its vectors are many.
    """
    scaled_VA = coordinate_VA / np.maximum(robust_scale(coordinate_VA[fits_V]), 1e-3)
    size_V, log_rows_V = np.log(np.median(np.abs(scaled_VA), axis=1) + 1e-6), np.log(rows_V)
    spread = float(log_rows_V[fits_V].var())
    slope = np.cov(log_rows_V[fits_V], size_V[fits_V], bias=True)[0, 1] / spread if spread > 0 else 0.0
    centre = float(np.median(log_rows_V[fits_V]))
    scaled_VA /= np.exp(np.clip(slope, -0.5, 0.0) * (log_rows_V - centre))[:, None]
    index_V = np.flatnonzero(fits_V)
    for mine, fitting in _by_regime(regime_V, index_V):
        own_A = np.square(restlessness(scaled_VA[fitting]))
        scaled_VA[mine] /= np.maximum(np.sqrt((len(fitting) * own_A + SHRINK) / (len(fitting) + SHRINK)), MIN_SPREAD)
    return np.asarray(scaled_VA, np.float32)


def _by_regime(regime_V: npt.NDArray[np.int32], fitting: IntN) -> Iterator[tuple[IntN, IntN]]:
    """All vectors of each regime that has a normal, and those of them that fit."""
    order = np.argsort(regime_V, kind="stable")
    fit_order = fitting[np.argsort(regime_V[fitting], kind="stable")]
    for regime, count in zip(*np.unique(regime_V[fit_order], return_counts=True), strict=True):
        if count >= MIN_OF_REGIME:
            low, high = np.searchsorted(regime_V[order], [regime, regime + 1])
            first, last = np.searchsorted(regime_V[fit_order], [regime, regime + 1])
            yield order[low:high], fit_order[first:last]


def deviations(value_V: FloatN, null_V: BoolN) -> FloatN:
    """Distance from the null's median in its wider half, from the median to the 16th or the 84th percentile.

    >>> deviations(np.array([0.0, 1.0, 2.0, 3.0, 4.0, 9.0]), np.array([1, 1, 1, 1, 1, 0], bool)).round(1).tolist()
    [-1.5, -0.7, 0.0, 0.7, 1.5, 5.1]
    """
    low, middle, high = np.percentile(value_V[null_V], [16.0, 50.0, 84.0])
    return np.asarray((value_V - middle) / max(high - middle, middle - low, 1e-3), np.float64)

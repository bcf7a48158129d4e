"""Known results: noisy waves of 64 samples, smoothed by autoencoders and by linear smoothers.

Noise of standard deviation .3 is added to waves of amplitude .5 to 1.5, 1 to 4 cycles and any phase: sines, or sines,
squares and triangles in equal parts. Errors are mean squared errors against the clean wave; the noise itself is .09.

- Smoothers: moving averages, Gaussian windows and Savitzky-Golay filters; the one that does best on waves set apart for
  the choice is judged. `best linear map`: the 64 x 64 matrix that least squares find on the training waves, its ridge
  chosen on the same waves set apart.
- Autoencoders of the project's layers, 12 numbers: dense and convolutional, trained to restore clean waves from noisy
  ones (denoising); and the dense one trained on noisy waves alone, which is all that a plant has.

Training, choice and judged waves are drawn apart. Differences are paired, wave by wave, with a 90 % interval that draws
waves with replacement; autoencoders are the mean over the seeds.
Usage: python -m benchmarks.known_results.denoising [--quick] [--seeds 1 2 3] [--waves 4000] [--epochs 60]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from scipy.ndimage import gaussian_filter1d, uniform_filter1d
from scipy.signal import savgol_filter
from torch import nn
from torch.nn import functional

from benchmarks.known_results.coders import fit, in_parts, optimiser, squared_error
from pipeline.detectors.networks import make_layers
from pipeline.detectors.objectives import corrupted
from pipeline.engine import Loss
from pipeline.params import AutoencoderParams, NetworkParams, NoiseParams
from pipeline.schema import FloatN, FloatNF
from pipeline.train import use_threads

SAMPLES, NOISE, LATENT = 64, 0.3, 12
CHOICE, JUDGED = 1000, 2000  # waves
SHAPES = {"sines": ("sine",), "mixed": ("sine", "square", "triangle")}
RIDGES = (0.0, 1.0, 10.0, 100.0)
DRAWS, CONFIDENCE = 1000, 0.9
NETWORKS = {
    "dense": AutoencoderParams(architecture="dense", layers=(48, 24), latent=LATENT),
    "convolutional": AutoencoderParams(latent=LATENT),
}
Smoother = Callable[[FloatNF], FloatNF]


@dataclass(frozen=True)
class Waves:
    """Clean and noisy waves (N, F)."""

    clean: FloatNF
    noisy: FloatNF


def waves(shapes: Sequence[str], count: int, rng: np.random.Generator) -> Waves:
    """Draw waves of these shapes, each as likely.

    >>> drawn = waves(["square"], 500, np.random.default_rng(0))
    >>> drawn.clean.shape, round(float((drawn.noisy - drawn.clean).std()), 2)
    ((500, 64), 0.3)
    """
    cycles, phase, amplitude = rng.uniform(1, 4, count), rng.uniform(0, 1, count), rng.uniform(0.5, 1.5, count)
    turn_NF = cycles[:, None] * np.arange(SAMPLES) / SAMPLES + phase[:, None]
    sine_NF = np.sin(2 * np.pi * turn_NF)
    all_of = {"sine": sine_NF, "square": np.sign(sine_NF), "triangle": 4 * np.abs(turn_NF % 1 - 0.5) - 1}
    which_N = rng.integers(0, len(shapes), count)
    clean = amplitude[:, None] * np.stack([all_of[shape] for shape in shapes])[which_N, np.arange(count)]
    noisy = clean + NOISE * rng.standard_normal(clean.shape)
    return Waves(clean.astype(np.float32), noisy.astype(np.float32))


def smoothers() -> dict[str, Smoother]:
    """Every linear smoother that is tried."""
    found: dict[str, Smoother] = {"none": lambda rows: rows}
    for width in range(3, 16, 2):
        found[f"moving average of {width}"] = lambda rows, width=width: uniform_filter1d(rows, width, mode="nearest")
    for sigma in (0.75, 1.0, 1.5, 2.0, 2.5, 3.0):
        found[f"Gaussian window of {sigma}"] = lambda rows, sigma=sigma: gaussian_filter1d(rows, sigma, mode="nearest")
    for order in (2, 3, 4, 5):
        for width in range(order + 2 - order % 2 + 1, 32, 4):
            found[f"Savitzky-Golay of {width}, order {order}"] = lambda rows, width=width, order=order: savgol_filter(
                rows, width, order
            )
    return found


def linear_map(training: Waves, ridge: float) -> Smoother:
    """Least squares from noisy to clean waves, with a mean and a ridge.

    >>> same = Waves(np.eye(3, dtype=np.float32), np.eye(3, dtype=np.float32))
    >>> bool(np.allclose(linear_map(same, 0.0)(same.noisy), np.eye(3), atol=1e-5))
    True
    """
    mean_F, wanted_F = training.noisy.mean(0), training.clean.mean(0)
    seen_NF = (training.noisy - mean_F).astype(np.float64)
    gram_FF = seen_NF.T @ seen_NF + ridge * np.eye(seen_NF.shape[1])
    map_FF = np.linalg.pinv(gram_FF, rcond=1e-9, hermitian=True) @ seen_NF.T @ (training.clean - wanted_F)
    return lambda rows: (rows - mean_F) @ map_FF + wanted_F


def chosen(candidates: Mapping[str, Smoother], choice: Waves) -> tuple[str, Smoother]:
    """The candidate with the smallest error on the waves set apart."""
    best = min(candidates, key=lambda name: float(wave_errors(candidates[name](choice.noisy), choice).mean()))
    return best, candidates[best]


def wave_errors(output_NF: FloatNF, of: Waves) -> FloatN:
    """Mean squared error (N,) of each wave against the clean one."""
    return np.asarray(np.square(output_NF - of.clean).mean(1), np.float64)


class WaveCoder(nn.Module):
    """Encoder and decoder of the project's layers."""

    def __init__(self, params: NetworkParams, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.encoder, self.decoder = make_layers(params, SAMPLES, params.latent)

    def forward(self, x_BF: torch.Tensor) -> torch.Tensor:
        """Reconstructions (B, F)."""
        output_BF: torch.Tensor = self.decoder(self.encoder(x_BF))
        return output_BF


def restoring(coder: WaveCoder) -> Loss:
    """Clean rows are wanted; noise is drawn anew in every epoch, and the same at every evaluation."""

    def loss(x_BF: torch.Tensor, _epoch: int, noise: torch.Generator | None) -> dict[str, torch.Tensor]:
        seen_BF = corrupted(x_BF, NoiseParams(gaussian=NOISE), noise or torch.Generator().manual_seed(0))
        return {"loss": functional.mse_loss(coder(seen_BF), x_BF)}

    return loss


def by_autoencoder(kind: str, training: Waves, choice: Waves, judged: Waves, epochs: int, seeds: list[int]) -> FloatN:
    """Mean error (N,) of each judged wave over the seeds."""
    name, clean_wanted = kind.split(", ")[0], kind.endswith("from clean waves")
    errors = []
    for seed in seeds:
        coder = WaveCoder(NETWORKS[name], seed)
        loss = restoring(coder) if clean_wanted else squared_error(coder)
        rows, held = ((each.clean if clean_wanted else each.noisy) for each in (training, choice))
        settings = optimiser(epochs, learning_rate=0.003, batch_rows=128)
        fit(coder, loss, torch.from_numpy(rows), torch.from_numpy(held), settings, seed)
        errors.append(wave_errors(in_parts(coder, torch.from_numpy(judged.noisy)).numpy(), judged))
    return np.asarray(np.mean(errors, axis=0))


def paired_interval(difference_N: FloatN, seed: int) -> list[float]:
    """Ends of the interval of a mean difference, when waves are drawn with replacement.

    >>> paired_interval(np.full(50, 0.25), 1)
    [0.25, 0.25]
    """
    drawn = np.random.default_rng(seed).integers(0, len(difference_N), (DRAWS, len(difference_N)))
    ends = np.quantile(difference_N[drawn].mean(1), [0.5 - CONFIDENCE / 2, 0.5 + CONFIDENCE / 2])
    return [round(float(end), 5) for end in ends]


def compare(shapes: Sequence[str], count: int, epochs: int, seeds: list[int], *, quick: bool) -> dict[str, Any]:
    """Errors of every way, and the paired differences of autoencoders from the two linear ones."""
    rng = np.random.default_rng(seeds[0])
    training = waves(shapes, count, rng)
    choice, judged = (waves(shapes, 60 if quick else size, rng) for size in (CHOICE, JUDGED))
    name, smoother = chosen(smoothers(), choice)
    ridge, mapped = chosen({f"ridge {ridge}": linear_map(training, ridge) for ridge in RIDGES}, choice)
    errors = {
        "noise": wave_errors(judged.noisy, judged),
        "smoother": wave_errors(smoother(judged.noisy), judged),
        "best linear map": wave_errors(mapped(judged.noisy), judged),
    }
    for kind in ("dense, from clean waves", "convolutional, from clean waves", "dense, from noisy waves"):
        errors[kind] = by_autoencoder(kind, training, choice, judged, epochs, seeds)
    found: dict[str, Any] = {"smoother": name, "map": ridge, "error": {}, "against": {}}
    for kind, values in errors.items():
        found["error"][kind] = round(float(values.mean()), 5)
        if "waves" in kind:
            found["against"][kind] = {
                rival: {
                    "difference": round(float((values - errors[rival]).mean()), 5),
                    "interval": paired_interval(values - errors[rival], seeds[0]),
                    "better_on": round(float((values < errors[rival]).mean()), 3),
                }
                for rival in ("smoother", "best linear map")
            }
    return found


def main() -> None:
    """Print a table, and one JSON object as the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="sizes of a test, not of a result")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--waves", type=int, default=4000)
    parser.add_argument("--epochs", type=int, default=60)
    options = parser.parse_args()
    use_threads(1)
    begin, quick = time.perf_counter(), options.quick
    seeds = options.seeds[:1] if quick else options.seeds
    count, epochs = (120, 2) if quick else (options.waves, options.epochs)
    found: dict[str, Any] = {"quick": quick, "seeds": seeds, "waves": count, "noise": NOISE, "published": None}
    found |= {name: compare(shapes, count, epochs, seeds, quick=quick) for name, shapes in SHAPES.items()}
    found["seconds"] = round(time.perf_counter() - begin)
    table = Table("waves", "smoothed by", "error", "less the smoother's (90 %)", "less the linear map's (90 %)")
    for shapes in SHAPES:
        for kind, error in found[shapes]["error"].items():
            label = found[shapes]["smoother"] if kind == "smoother" else kind
            against = found[shapes]["against"].get(kind, {})
            cells = [f"{each['difference']:+.4f} {each['interval']}" for each in against.values()] or ["—", "—"]
            table.add_row(shapes, label, f"{error:.4f}", *cells)
    Console(width=150).print(table)
    print(json.dumps(found))


if __name__ == "__main__":
    main()

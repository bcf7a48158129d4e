"""Rows per second of training and scoring: our detectors, a bare torch loop with the same layers, and PyOD.

Three networks: dense 64-32-12-32-64 with ReLU, and the convolutional autoencoder of the parameters' defaults. Training
counts epochs only, without validation and without what is fitted afterwards. The bare loop holds all rows in one
tensor, draws a permutation per epoch, picks each batch with index_select and steps AdamW; it computes in float32, the
convolutions as conv1d. PyOD's AutoEncoder has BatchNorm and dropout off, no preprocessing, and its final scoring is not
counted. All score the same rows, already relative to their baseline, by the mean squared error of their reconstruction:
ours in the padded batches of `Detector.score`. What `Detector.score` does from the spectrum on stands beside it, in no
ratio: the others have no machine baselines.

In every repeat each contender runs once, in an order that turns; a ratio is that of one repeat. With several batches a
repeat's ratio is the geometric mean over them. Quartiles are over repeats.

Where a GPU is, `--epoch-rows 18000000` measures one epoch of that many rows on it, and the share of the card's memory
bandwidth and arithmetic (`--card-tbs`, `--card-tflops`) that it reaches.

Usage: python benchmarks/train_speed.py [--rows 262144] [--repeats 7] [--batches 1024 8192] [--threads 2]
    [--networks dense conv]
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from pipeline.detectors import Fitting, TrainingRows, choose_device
from pipeline.detectors.baseline import fit_baselines
from pipeline.detectors.neural import AutoencoderDetector
from pipeline.engine import FeatureRows, Run, autocast, choose_precision, train_network
from pipeline.params import AutoencoderParams, OptimiserParams
from pipeline.rows import RowKeys

BINS, LATENT, WIDTH = 64, 12, 32
CHANNELS, KERNEL = (8, 16, 32), 5
LEARNING_RATE = 1e-3
GOALS = {
    "train_vs_bare_torch": 0.9,
    "score_vs_bare_torch": 0.9,
    "train_vs_pyod": 3.0,
    "score_vs_pyod": 2.0,
    "conv_train_vs_conv1d": 2.5,
    "conv_score_vs_conv1d": 3.0,
}
Measured = tuple[float, float]  # rows per second of training and of scoring
Contender = Callable[[np.ndarray, int, int], Measured]


def spectra_like(rows: int) -> np.ndarray:
    """Rows (N, F) as a detector sees them after the baselines: twelve causes, and noise."""
    rng = np.random.default_rng(20250101)
    mixed = rng.normal(size=(rows, LATENT)) @ rng.normal(size=(LATENT, BINS)) / np.sqrt(LATENT)
    return np.asarray(0.9 * mixed + 0.4 * rng.normal(size=(rows, BINS)), np.float32)


def detector_of(kind: str, batch: int, epochs: int, precision: str, rows_NF: np.ndarray) -> AutoencoderDetector:
    """Our detector of a kind, not fitted."""
    optimiser = OptimiserParams(
        batch_rows=batch, max_epochs=epochs, patience=epochs, learning_rate=LEARNING_RATE, schedule="constant"
    )
    layers: dict[str, Any] = {"architecture": "convolutional", "channels": CHANNELS, "kernel": KERNEL}
    if kind == "dense":
        layers = {"architecture": "dense", "layers": (WIDTH,), "activation": "relu"}
    params = AutoencoderParams(
        **layers, latent=LATENT, restarts=0, score="residual", residual="mean_squared", optimiser=optimiser
    )
    keys = RowKeys.of(["machine"], np.zeros(len(rows_NF), int), np.zeros(len(rows_NF), int))
    baselines = fit_baselines(rows_NF[:10_000], keys.take(slice(10_000)), scope="global", log=False)
    device = choose_device("auto")
    detector = AutoencoderDetector(baselines, batch, device, params=params)
    detector.precision = choose_precision(precision, device)
    return detector


def ours(kind: str, precision: str) -> Contender:
    """Our detector: the engine's own figure for training, the clock for scoring."""

    def measure(rows_NF: np.ndarray, batch: int, epochs: int) -> Measured:
        detector = detector_of(kind, batch, epochs, precision, rows_NF)
        codes = np.zeros(len(rows_NF), np.int32)
        some = rows_NF[:1000]
        history = detector.fit(TrainingRows(rows_NF, codes, some, codes[:1000]), Fitting(0, detector.device))
        relative = detector.relative(rows_NF, codes)
        return history["rows_per_s"], per_second(len(rows_NF), lambda: score_relative(detector, relative))

    return measure


@torch.inference_mode()
def score_relative(detector: AutoencoderDetector, relative_NG: torch.Tensor) -> np.ndarray:
    """Scores (N,) as `Detector.score` computes them after the baselines."""
    parts = []
    for relative_BG in relative_NG.split(detector.batch_rows):
        with autocast(detector.device, detector.precision):
            parts.append(detector.score_batch(relative_BG[:, :-1], relative_BG))
    return torch.cat(parts).double().cpu().numpy()


def from_spectra(kind: str, precision: str, rows_NF: np.ndarray, batch: int) -> float:
    """Rows per second of `Detector.score`: with machine baselines, and copies between NumPy and torch."""
    detector = detector_of(kind, batch, 1, precision, rows_NF)
    codes = np.zeros(len(rows_NF), np.int32)
    detector.fit(
        TrainingRows(rows_NF[:20_000], codes[:20_000], rows_NF[:1000], codes[:1000]), Fitting(0, detector.device)
    )
    return per_second(len(rows_NF), lambda: detector.score(rows_NF, codes))


class BareConvolutions(nn.Module):
    """The convolutional autoencoder in torch's own layers."""

    def __init__(self) -> None:
        super().__init__()
        length, sizes = BINS // 2 ** len(CHANNELS), [1, *CHANNELS]
        down: list[nn.Module] = []
        up: list[nn.Module] = []
        for before, after in zip(sizes, CHANNELS, strict=False):
            down += [nn.Conv1d(before, after, KERNEL, 2, KERNEL // 2), nn.GELU()]
            up = [nn.GELU(), nn.ConvTranspose1d(after, before, KERNEL, 2, KERNEL // 2, 1), *up]
        self.encoder = nn.Sequential(*down, nn.Flatten(), nn.Linear(CHANNELS[-1] * length, LATENT))
        self.head = nn.Linear(LATENT, CHANNELS[-1] * length)
        self.decoder = nn.Sequential(nn.Unflatten(1, (CHANNELS[-1], length)), *up)

    def forward(self, x_BF: torch.Tensor) -> torch.Tensor:
        """Reconstructions (B, F)."""
        decoded: torch.Tensor = self.decoder(self.head(self.encoder(x_BF[:, None])))
        return decoded[:, 0]


def bare_layers(kind: str) -> nn.Module:
    """The same layers as our detector's."""
    if kind == "conv":
        return BareConvolutions()
    return nn.Sequential(
        nn.Linear(BINS, WIDTH),
        nn.ReLU(),
        nn.Linear(WIDTH, LATENT),
        nn.Linear(LATENT, WIDTH),
        nn.ReLU(),
        nn.Linear(WIDTH, BINS),
    )


def bare_torch(kind: str) -> Contender:
    """A loop as one writes it by hand."""

    def measure(rows_NF: np.ndarray, batch: int, epochs: int) -> Measured:
        device = choose_device("auto")
        data, network = torch.from_numpy(rows_NF).to(device), bare_layers(kind).to(device)
        optimiser = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE)

        def train() -> None:
            for _ in range(epochs):
                for picked in torch.randperm(len(data)).to(device).split(batch):
                    x = data.index_select(0, picked)
                    loss = functional.mse_loss(network(x), x)
                    optimiser.zero_grad()
                    loss.backward()
                    optimiser.step()
            synchronise(device)

        @torch.inference_mode()
        def score() -> np.ndarray:
            parts = [(part - network(part)).square().mean(1) for part in data.split(batch)]
            return torch.cat(parts).double().cpu().numpy()

        return per_second(epochs * len(data), train), per_second(len(data), score)

    return measure


def pyod_autoencoder() -> Contender | None:
    """PyOD's detector with the same widths; None where it is not installed."""
    if importlib.util.find_spec("pyod") is None:
        return None
    from pyod.models.auto_encoder import AutoEncoder

    class EpochsOnly(AutoEncoder):  # type: ignore[misc]
        """Says how long its epochs took, and scores nothing before it is `ready`."""

        seconds, ready = 0.0, False

        def train(self, train_loader: Any) -> None:
            started = time.perf_counter()
            super().train(train_loader)
            self.seconds = time.perf_counter() - started

        def decision_function(self, X: np.ndarray, batch_size: int | None = None) -> np.ndarray:
            return np.asarray(super().decision_function(X, batch_size)) if self.ready else np.zeros(len(X))

    def measure(rows_NF: np.ndarray, batch: int, epochs: int) -> Measured:
        detector = EpochsOnly(
            preprocessing=False,
            lr=LEARNING_RATE,
            epoch_num=epochs,
            batch_size=batch,
            hidden_neuron_list=[WIDTH, LATENT],
            batch_norm=False,
            dropout_rate=0,
            verbose=0,
        )
        detector.fit(rows_NF)
        detector.ready = True
        trained = epochs * (len(rows_NF) // batch * batch) / detector.seconds  # it drops the last, smaller batch
        return trained, per_second(len(rows_NF), lambda: detector.decision_function(rows_NF))

    return measure


def per_second(rows: int, work: Callable[[], object]) -> float:
    """Rows over the seconds that some work takes."""
    started = time.perf_counter()
    work()
    return rows / (time.perf_counter() - started)


def synchronise(device: torch.device) -> None:
    """Wait for a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def interleaved(contenders: dict[str, Contender], rows_NF: np.ndarray, batches: list[int], repeats: int) -> np.ndarray:
    """Rates (contender, repeat, batch, training or scoring); the first round, which warms up, is not kept."""
    rates = np.zeros((len(contenders), repeats + 1, len(batches), 2))
    names = list(contenders)
    for repeat in range(repeats + 1):
        for column, batch in enumerate(batches):
            for turn in range(len(names)):
                index = (turn + repeat) % len(names)
                rates[index, repeat, column] = contenders[names[index]](rows_NF, batch, 1)
    return rates[:, 1:]


def quartiles(ratios_RB: np.ndarray) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile over repeats of the geometric mean over batches."""
    low, middle, high = np.percentile(np.exp(np.log(ratios_RB).mean(1)), [25, 50, 75])
    return float(low), float(middle), float(high)


def one_epoch(kind: str, rows: int, batch: int, precision: str, tbs: float, tflops: float) -> dict[str, float]:
    """Seconds of an epoch on the GPU, and what it reaches of the card's bandwidth and arithmetic.

    Bytes: every row is read once, and its loss needs no more. FLOP: products of a step, as torch counts them.
    """
    device = choose_device("cuda")
    detector = detector_of(kind, batch, 2, precision, spectra_like(20_000))
    detector.build()
    features = torch.randn((rows, BINS), device=device)
    with FlopCounterMode(display=False) as counter:
        detector.loss(features[:batch], 1, None)["loss"].backward()
    settings, run = detector.params.optimiser, Run(kind, 0, device, detector.precision, compile=True)
    history = train_network(
        detector.network, detector.loss, FeatureRows.resident(features), features[:1000], settings, run
    )
    seconds = rows / history["rows_per_s"]
    return {
        "seconds": round(seconds, 3),
        "bandwidth_share": round(rows * BINS * 4 / seconds / (tbs * 1e12), 4),
        "flops_share": round(counter.get_total_flops() / batch * rows / seconds / (tflops * 1e12), 4),
    }


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument(
        "--rows", type=int, default=262_144, help="at least 32 batches: the engine halves the batch else"
    )
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--batches", type=int, nargs="+", default=[1024, 8192])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--networks", nargs="+", choices=["dense", "conv"], default=["dense", "conv"])
    parser.add_argument("--precision", choices=["auto", "float32", "bfloat16"], default="auto")
    parser.add_argument("--epoch-rows", type=int, default=0, help="rows of an epoch on a GPU")
    parser.add_argument("--card-tbs", type=float, default=4.8, help="bandwidth of the card, TB/s (H200: 4.8)")
    parser.add_argument("--card-tflops", type=float, default=989.0, help="dense bfloat16 TFLOP/s (H200: 989)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device, console = choose_device("auto"), Console()
    rows_NF, batches = spectra_like(arguments.rows), arguments.batches
    figures: dict[str, Any] = dict.fromkeys(GOALS)
    table = Table("network", "who", *(f"{what} at {b:,}" for b in batches for what in ("train", "score")))
    table.title = f"rows per second, medians of {arguments.repeats} repeats, {device.type}, {arguments.threads} threads"
    for kind in arguments.networks:
        bare = "bare_torch" if kind == "dense" else "conv1d"
        contenders = {"ours": ours(kind, arguments.precision), bare: bare_torch(kind)}
        other = pyod_autoencoder() if kind == "dense" else None
        contenders |= {"pyod": other} if other is not None else {}
        rates = interleaved(contenders, rows_NF, batches, arguments.repeats)
        for index, name in enumerate(contenders):
            table.add_row(kind, name, *(f"{rate:,.0f}" for rate in np.median(rates[index], axis=0).reshape(-1)))
            for column, what in enumerate(("train", "score") if index else ()):
                ratios_RB = rates[0, :, :, column] / rates[index, :, :, column]
                key = f"{'conv_' if kind == 'conv' else ''}{what}_vs_{name}"
                low, middle, high = quartiles(ratios_RB)
                figures |= {f"{key}_q1": low, key: middle, f"{key}_q3": high}
                for batch, ratio in zip(batches, np.median(ratios_RB, axis=0), strict=True):
                    figures[f"{key}_{batch}"] = float(ratio)
        speed = max(from_spectra(kind, arguments.precision, rows_NF, batches[-1]) for _ in range(3))
        figures[f"{'conv_' if kind == 'conv' else ''}score_from_spectra_rows_per_s"] = round(speed)
    console.print(table)
    figures = {name: round(value, 3) if isinstance(value, float) else value for name, value in figures.items()}
    figures |= {"rows": arguments.rows, "repeats": arguments.repeats, "batches": batches, "threads": arguments.threads}
    figures |= {"device": device.type, "precision": choose_precision(arguments.precision, device), "goals": GOALS}
    if importlib.util.find_spec("pyod") is None:
        figures["why_null"] = "PyOD is not installed (pip install '.[benchmarks]')"
    if arguments.epoch_rows and device.type == "cuda":
        card = arguments.card_tbs, arguments.card_tflops
        for kind in arguments.networks:
            figures[f"{kind}_epoch"] = one_epoch(kind, arguments.epoch_rows, 65_536, arguments.precision, *card)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()

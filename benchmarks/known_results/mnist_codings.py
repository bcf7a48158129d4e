"""Known results: autoencoders of MNIST's digits, stacked, sparse, denoising and trimmed, beside PCA.

After Boehmke and Greenwell, Hands-On Machine Learning with R (2020), chapter 19, whose networks H2O trained. Errors are
mean squared errors per pixel, of pixels in 0 to 1, over rows that trained nothing.

- Stacks of tanh layers: 100; 300-100-300; 100-50-100; 50; 250-100-50-100-250. PCA with as many components as the
  narrowest layer is about the least that a linear decoder of a code as wide can lose.
- Sparse codes of 100: KL divergence to an average activation of -.1 (beta .01, .05, .1, .2) and of -.75.
- Denoising: a third of the pixels masked, or Gaussian noise of .3; errors against the clean rows, also of the plain
  network that sees the same corrupted rows.
- Two numbers: PCA against autoencoders with a code of two; and how many digits their 15 nearest training neighbours
  name rightly.
- The distribution of errors, the five worst digits, and a refit on the rows whose error is below the 75th percentile.

Usage: python -m benchmarks.known_results.mnist_codings [--quick] [--rows 20000] [--epochs 12] [--seed 1]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from sklearn.decomposition import PCA
from sklearn.neighbors import KNeighborsClassifier
from torch.nn import functional

from benchmarks.known_results.coders import Coder, fit, in_parts, optimiser, row_errors, sparsity, squared_error
from benchmarks.known_results.digits import Digits, read_digits
from pipeline.detectors.networks import Activation
from pipeline.detectors.objectives import corrupted
from pipeline.engine import Loss
from pipeline.params import NoiseParams
from pipeline.train import use_threads

STACKS: dict[str, tuple[tuple[int, ...], float]] = {  # encoder, mirrored in the decoder; published error
    "100": ((100,), 0.0067),
    "300-100-300": ((300, 100), 0.0083),
    "100-50-100": ((100, 50), 0.0112),
    "50": ((50,), 0.0125),
    "250-100-50-100-250": ((250, 100, 50), 0.0144),
}
BETAS, AVERAGE, LOWER_AVERAGE = (0.01, 0.05, 0.1, 0.2), -0.1, -0.75
PUBLISHED_SPARSE = [0.0130, 0.0135]  # the smallest and the largest of the four
NOISES = {"masked": NoiseParams(masking=1 / 3), "gaussian": NoiseParams(gaussian=0.3)}
PUBLISHED_DENOISING, PUBLISHED_PLAIN = 0.0205, 0.0067
NEIGHBOURS, WORST, TRIM_PERCENTILE = 15, 5, 75
PERCENTILES = (5, 25, 50, 75, 95, 99, 100)


@dataclass(frozen=True)
class Job:
    """Rows, and how long and from which seed to train on them."""

    digits: Digits
    epochs: int
    seed: int

    def coder(self, widths: tuple[int, ...], activation: Activation = "tanh") -> Coder:
        """Random weights; the code is the last of the widths."""
        tanh = activation == "tanh"
        code = "tanh" if tanh else "identity"
        return Coder([self.digits.pixels, *widths], activation, code_activation=code, seed=self.seed)

    def fit(self, coder: Coder, loss: Loss, keep_N: torch.Tensor | None = None) -> Coder:
        """Train on the rows that fit (of them, those to keep)."""
        fits_N, held_N = self.digits.fitting()
        if keep_N is not None:
            fits_N, held_N = fits_N & keep_N, held_N & keep_N
        settings = optimiser(self.epochs, batch_rows=128, learning_rate=0.003)
        fit(coder, loss, self.digits.train[fits_N], self.digits.train[held_N], settings, self.seed)
        return coder

    def plain(self, widths: tuple[int, ...], activation: Activation = "tanh") -> Coder:
        """Trained to reconstruct."""
        coder = self.coder(widths, activation)
        return self.fit(coder, squared_error(coder))


def sparse_loss(coder: Coder, beta: float, target: float) -> Loss:
    """Half the squared error of a row and beta times the divergence (Ng 2011, equation of J_sparse), per pixel."""

    def loss(x_BF: torch.Tensor, _epoch: int, _noise: torch.Generator | None) -> dict[str, torch.Tensor]:
        code_BL = coder.code(x_BF)
        error = 0.5 * functional.mse_loss(coder.decoder(code_BL), x_BF)
        divergence = sparsity(code_BL, target)
        return {"loss": error + beta * divergence / x_BF.shape[1], "divergence": divergence}

    return loss


def denoising_loss(coder: Coder, noise_params: NoiseParams) -> Loss:
    """The clean rows are wanted, the corrupted ones seen; an evaluation draws the same corruption each time."""

    def loss(x_BF: torch.Tensor, _epoch: int, noise: torch.Generator | None) -> dict[str, torch.Tensor]:
        seen_BF = corrupted(x_BF, noise_params, noise or torch.Generator().manual_seed(0))
        return {"loss": functional.mse_loss(coder(seen_BF), x_BF)}

    return loss


def pca_errors(digits: Digits, components: int) -> torch.Tensor:
    """Mean squared error (N,) of each judged row."""
    model = PCA(min(components, digits.pixels), random_state=0).fit(digits.train.numpy())
    rows = digits.test.numpy()
    return torch.from_numpy(np.square(model.inverse_transform(model.transform(rows)) - rows).mean(1))


def stacks(job: Job) -> tuple[dict[str, Any], Coder]:
    """Errors of the stacks beside the published ones and PCA; and the network of 100."""
    found, first, digits = {}, None, job.digits
    linear = {
        width: rounded(pca_errors(digits, width).mean()) for width in {widths[-1] for widths, _ in STACKS.values()}
    }
    for name, (widths, published) in STACKS.items():
        coder = job.plain(widths)
        errors = {part: rounded(row_errors(coder, rows).mean()) for part, rows in parts(digits).items()}
        found[name] = errors | {"published": published, "pca": linear[widths[-1]]}
        first = first or coder
    assert first is not None
    return found, first


def parts(digits: Digits) -> dict[str, torch.Tensor]:
    """Rows that trained, and rows that judge."""
    return {"train": digits.train, "test": digits.test}


def sparse(job: Job, plain: Coder) -> dict[str, Any]:
    """Error and average activation of each sparse code, and of the plain network's."""
    found = {"plain": {"test": mean_error(plain, job), "average_activation": average(plain, job), "published": 0.0067}}
    for target, beta in [*((AVERAGE, beta) for beta in BETAS), (LOWER_AVERAGE, BETAS[-1])]:
        coder = job.coder((100,))
        job.fit(coder, sparse_loss(coder, beta, target))
        published = PUBLISHED_SPARSE if target == AVERAGE else None
        figures = {"test": mean_error(coder, job), "average_activation": average(coder, job), "published": published}
        found[f"beta {beta}, average {target}"] = figures
    return found


def average(coder: Coder, job: Job) -> float:
    """Mean activation of the code over all units and judged rows."""
    return rounded(in_parts(coder.code, job.digits.test).mean())


def mean_error(coder: Coder, job: Job) -> float:
    """Over the judged rows."""
    return rounded(row_errors(coder, job.digits.test).mean())


def denoising(job: Job, plain: Coder) -> dict[str, Any]:
    """Errors against the clean rows, of corrupted and of clean ones, beside the plain network's."""
    found = {}
    for name, noise in NOISES.items():
        coder, digits = job.coder((100,)), job.digits
        job.fit(coder, denoising_loss(coder, noise))
        seen = corrupted(digits.test, noise, torch.Generator().manual_seed(job.seed))
        found[name] = {
            "of_corrupted": rounded(row_errors(coder, digits.test, seen).mean()),
            "of_clean": mean_error(coder, job),
            "plain_of_corrupted": rounded(row_errors(plain, digits.test, seen).mean()),
            "plain_of_clean": mean_error(plain, job),
            "published": PUBLISHED_DENOISING,
            "published_plain": PUBLISHED_PLAIN,
        }
    return found


def two_numbers(job: Job) -> dict[str, Any]:
    """Codes of two: error, and the share of digits that the nearest training codes name rightly."""
    digits = job.digits
    model = PCA(2, random_state=0).fit(digits.train.numpy())
    shallow, deep = job.plain((2,)), job.plain((128, 32, 2), "gelu")
    codes = {
        "PCA": (rounded(pca_errors(digits, 2).mean()), *(model.transform(rows) for rows in parts(digits).values())),
    }
    for name, coder in (("tanh, one layer", shallow), ("gelu, 128-32-2", deep)):
        both = (in_parts(coder.code, rows).numpy() for rows in parts(digits).values())
        codes[name] = (mean_error(coder, job), *both)
    found = {}
    for name, (error, train_N2, test_N2) in codes.items():
        neighbours = KNeighborsClassifier(NEIGHBOURS).fit(train_N2, digits.train_digit.numpy())
        accuracy = float(neighbours.score(test_N2, digits.test_digit.numpy()))
        found[name] = {"test": error, "neighbours_right": rounded(accuracy)}
    return found


def errors_and_trim(job: Job, plain: Coder) -> dict[str, Any]:
    """Distribution of the errors, the worst digits, and both again after a refit without the rows of large error."""
    digits, trained = job.digits, row_errors(plain, job.digits.train)
    limit = float(np.percentile(trained.numpy(), TRIM_PERCENTILE))
    refit = job.coder((100,))
    job.fit(refit, squared_error(refit), trained < limit)
    before, after = row_errors(plain, digits.test), row_errors(refit, digits.test)
    worst = before.argsort(descending=True)[:WORST]
    large = before >= limit
    return {
        "percentiles": {
            str(q): [rounded(np.percentile(each.numpy(), q)) for each in (before, after)] for q in PERCENTILES
        },
        "worst": [[int(digits.test_digit[row]), rounded(before[row])] for row in worst],
        "worst_after_refit": [int(digits.test_digit[row]) for row in after.argsort(descending=True)[:WORST]],
        "limit": rounded(limit),
        "mean_of_large": [rounded(each[large].mean()) for each in (before, after)],
        "mean_of_small": [rounded(each[~large].mean()) for each in (before, after)],
    }


def rounded(value: Any) -> float:
    """Five digits behind the point."""
    return round(float(value), 5)


def show(result: Mapping[str, Any], console: Console) -> None:
    """The tables of a result."""

    def printed(title: str, headings: list[str], rows: list[list[Any]]) -> None:
        table = Table(*headings, title=title)
        for row in rows:
            table.add_row(*("—" if cell is None else str(cell) for cell in row))
        console.print(table)

    rows = [[name, f["published"], f["train"], f["test"], f["pca"]] for name, f in result["stacks"].items()]
    title = f"{result['source']}: {result['rows']} rows train, {result['judged']} judge; mean squared error"
    printed(title, ["layers", "published", "train", "test", "PCA, as wide"], rows)
    rows = [[name, f["published"], f["test"], f["average_activation"]] for name, f in result["sparse"].items()]
    printed("sparse codes of 100", ["penalty", "published", "test", "average activation"], rows)
    keys = ["published", "of_corrupted", "plain_of_corrupted", "published_plain", "of_clean", "plain_of_clean"]
    rows = [[name, *(f[key] for key in keys)] for name, f in result["denoising"].items()]
    printed("denoising, code of 100", ["noise", *(key.replace("_", " ") for key in keys)], rows)
    rows = [[name, f["test"], f["neighbours_right"]] for name, f in result["two_numbers"].items()]
    printed("codes of two numbers", ["code", "test", "digits named by neighbours"], rows)
    errors = result["errors"]
    rows = [[f"{q} %", *both] for q, both in errors["percentiles"].items()]
    rows += [[f"mean below {errors['limit']}", *errors["mean_of_small"]], ["mean from it on", *errors["mean_of_large"]]]
    printed("errors of judged rows", ["percentile", "all rows train", f"those below {TRIM_PERCENTILE} %"], rows)
    console.print("worst digits: " + ", ".join(f"{digit} ({error})" for digit, error in errors["worst"]))


def main() -> None:
    """Print the tables, and one JSON object as the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="sizes of a test, not of a result")
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    use_threads(1)
    begin, quick = time.perf_counter(), options.quick
    digits = read_digits(300 if quick else options.rows, 100 if quick else None, options.seed)
    job = Job(digits, 1 if quick else options.epochs, options.seed)
    found: dict[str, Any] = {"quick": quick, "source": digits.source, "rows": len(digits.train)}
    found |= {"judged": len(digits.test), "epochs": job.epochs, "seed": job.seed}
    found["stacks"], plain = stacks(job)
    found["sparse"] = sparse(job, plain)
    found["denoising"] = denoising(job, plain)
    found["two_numbers"] = two_numbers(job)
    found["errors"] = errors_and_trim(job, plain)
    found["seconds"] = round(time.perf_counter() - begin)
    show(found, Console(width=150))
    print(json.dumps(found))


if __name__ == "__main__":
    main()

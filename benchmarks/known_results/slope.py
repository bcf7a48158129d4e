"""Known results: the slope problem, images that one number describes, for a classical and a variational autoencoder.

After technical report IDSIA-20-10.1 (2020). An image is black and white on either side of a straight line through its
middle; the line's angle is all that differs. Networks are F-2-1-2-F: ReLU, a linear code, a sigmoid at the end.

- 32 x 32: 1,000 images train, 1,000 others judge. Several seeds train at once, and the one with the lowest training
  loss is shown; how many of them end as well as it stands beside. Reconstruction error with the sigmoid, and the share
  of wrong pixels when a step function takes its place after training. Codes of the variational one: mean and
  deviation over the images, and the median deviation of a single image's code. Both score images with a defect (a
  square whose pixels are turned) and images without a line, against the other good ones. `slope`: white lies above the
  line, so that its slope says all; `turn`: on any side, a circle that a code of one number has to cut open.
- 2 x 2: there are four images. Over many seeds, trained at once: what each network ends with (`outcome`). Wider layers,
  and a restart from another seed of those in which all rows have one code or one output, at most twice: the rule by
  which the project's networks are trained again. The variational one also with a KL divergence that counts a tenth.

Usage: python -m benchmarks.known_results.slope [--quick] [--parts images_32 images_2] [--seeds 300] [--starts 8]
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from sklearn.metrics import roc_auc_score
from torch import nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn import functional

from pipeline.detectors.learned import ROUNDING
from pipeline.detectors.networks import DenseStack
from pipeline.detectors.objectives import kl_divergence
from pipeline.train import use_threads

SIDE, TRAINING, JUDGED = 32, 1000, 1000
WIDTH, WIDER = 2, (4, 8, 16)  # of the hidden layers
RESTARTS = 2  # as pipeline.params.NetworkParams.restarts
SAME, NEAR = 0.1, 0.25  # outputs that differ by less are one; a pixel so near to its colour is right
AS_GOOD = 1.1  # times the best training loss
DEFECT = 8  # side of the square whose pixels are turned, at 32 x 32
PUBLISHED = {"code_mean": 0.0, "code_deviation": 1.0, "deviation_of_one": 0.01}
OUTCOMES = ("right", "two averaged", "two pairs", "three averaged", "all grey", "other")
BETAS = {"classical": None, "variational": 1.0, "variational, beta .1": 0.1}  # weight of the KL divergence
STEPS, FOUR_STEPS = 3000, 1500
SPANS = {"slope": np.pi, "turn": 2 * np.pi}  # of the angle, from the x axis on
Parameters = dict[str, torch.Tensor]


# images


def line_images(angle_N: np.ndarray, side: int) -> torch.Tensor:
    """Images (N, side * side), row by row from the top: 1 where the line's normal, at this angle, points.

    Args:
        angle_N: radians, from the x axis.
        side: pixels, an even number: no pixel lies on the middle.

    >>> line_images(np.array([0.1, np.pi / 2 + 0.1]), 2).tolist()
    [[0.0, 1.0, 0.0, 1.0], [1.0, 1.0, 0.0, 0.0]]
    """
    if side % 2:
        raise ValueError(f"got side={side}, expected an even number")
    place = np.arange(side) - (side - 1) / 2
    x_P, y_P = np.tile(place, side), np.repeat(-place, side)
    inside_NP = np.cos(angle_N)[:, None] * x_P + np.sin(angle_N)[:, None] * y_P > 0
    return torch.from_numpy(inside_NP.astype(np.float32))


def four_images() -> torch.Tensor:
    """The 2 x 2 images: right, top, left, bottom half white."""
    return line_images(np.arange(4) * np.pi / 2 + 0.1, 2)


def with_defect(images_NP: torch.Tensor, size: int, rng: np.random.Generator) -> torch.Tensor:
    """The images with a square of `size` pixels, somewhere, whose colours are turned."""
    side = round(images_NP.shape[1] ** 0.5)
    turned = images_NP.clone().view(-1, side, side)
    for image, (row, column) in zip(turned, rng.integers(0, side - size + 1, (len(turned), 2)), strict=True):
        image[row : row + size, column : column + size] = 1 - image[row : row + size, column : column + size]
    return turned.flatten(1)


def without_line(count: int, side: int, rng: np.random.Generator) -> torch.Tensor:
    """Images of a disc, half as large as the image, somewhere in it: as many white pixels as the line leaves, no line.

    >>> discs = without_line(3, 32, np.random.default_rng(0))
    >>> bool((discs.mean(1) > 0.15).all() and (discs.mean(1) < 0.55).all())
    True
    """
    row_P, column_P = np.divmod(np.arange(side * side), side)
    radius_N = side * rng.uniform(0.25, 0.4, count)
    centre_N2 = rng.uniform(radius_N[:, None], (side - radius_N)[:, None], (count, 2))
    away_NP = np.hypot(row_P - centre_N2[:, :1], column_P - centre_N2[:, 1:])
    return torch.from_numpy((away_NP < radius_N[:, None]).astype(np.float32))


# networks: S of them, of the same layers, are one set of stacked parameters


class SlopeCoder(nn.Module):
    """F-width-1-width-F of the project's layers; a variational one has mean and log variance of its code."""

    def __init__(self, pixels: int, width: int, *, variational: bool) -> None:
        super().__init__()
        self.encoder = DenseStack([pixels, width, 2 if variational else 1], "relu")
        self.decoder = DenseStack([1, width, pixels], "relu")

    def forward(self, x_BP: torch.Tensor, draw_B1: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Logits (B, F), mean and log variance (B, 1) of the codes; draws are of a standard normal distribution."""
        code = self.encoder(x_BP)
        mean_B1 = code[:, :1]
        if code.shape[1] == 1:
            return self.decoder(mean_B1), mean_B1, torch.zeros_like(mean_B1)
        log_variance_B1 = code[:, 1:]
        return self.decoder(mean_B1 + draw_B1 * (0.5 * log_variance_B1).exp()), mean_B1, log_variance_B1


@dataclass
class Networks:
    """S networks of the same layers."""

    base: SlopeCoder
    parameters: Parameters  # (S, ...) each
    beta: float | None  # weight of the KL divergence; None: they are classical

    @classmethod
    def of(cls, seeds: list[int], pixels: int, width: int, beta: float | None) -> Networks:
        """Random weights of these seeds."""
        made = []
        for seed in seeds:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                made.append(SlopeCoder(pixels, width, variational=beta is not None))
        parameters, _ = stack_module_state(list(made))
        return cls(made[0].to("meta"), {name: value.detach() for name, value in parameters.items()}, beta)

    def __len__(self) -> int:
        return len(next(iter(self.parameters.values())))

    def __call__(self, x_BP: torch.Tensor, draw_SB1: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
        """Logits (S, B, F), mean and log variance (S, B, 1); no draws: the code is taken at its mean."""
        draws = x_BP.new_zeros(len(self), len(x_BP), 1) if draw_SB1 is None else draw_SB1

        def one(parameters: Parameters, draw_B1: torch.Tensor) -> tuple[torch.Tensor, ...]:
            result: tuple[torch.Tensor, ...] = functional_call(self.base, parameters, (x_BP, draw_B1))
            return result

        result: tuple[torch.Tensor, ...] = vmap(one)(self.parameters, draws)
        return result

    def replace(self, places: list[int], others: Networks) -> None:
        """Put other networks in the place of some."""
        for name, value in self.parameters.items():
            value[places] = others.parameters[name]


def losses(networks: Networks, x_BP: torch.Tensor, draw_SB1: torch.Tensor | None) -> torch.Tensor:
    """Loss (S,) in nats per image: cross-entropy over the pixels, for a variational network with the KL divergence."""
    logits_SBP, mean_SB1, log_variance_SB1 = networks(x_BP, draw_SB1)
    target_SBP = x_BP.expand_as(logits_SBP)
    entropy_SB = functional.binary_cross_entropy_with_logits(logits_SBP, target_SBP, reduction="none").sum(2)
    if networks.beta is not None:
        entropy_SB = entropy_SB + networks.beta * kl_divergence(mean_SB1, log_variance_SB1).sum(2)
    return entropy_SB.mean(1)


def train(networks: Networks, images_NP: torch.Tensor, *, steps: int, batch: int, rate: float, seed: int) -> None:
    """Adam with a falling rate; the networks do not see each other, and all see the same batches."""
    noise = torch.Generator().manual_seed(seed)
    values = [value.requires_grad_() for value in networks.parameters.values()]
    optimiser = torch.optim.Adam(values, lr=rate, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        whole = batch >= len(images_NP)
        x_BP = images_NP if whole else images_NP[torch.randint(len(images_NP), (batch,), generator=noise)]
        draws = torch.randn(len(networks), len(x_BP), 1, generator=noise) if networks.beta is not None else None
        optimiser.zero_grad()
        losses(networks, x_BP, draws).sum().backward()  # a sum: each network has its own gradient
        optimiser.step()
        schedule.step()
    for value in values:
        value.requires_grad_(False)


def dead(networks: Networks, images_NP: torch.Tensor) -> torch.Tensor:
    """Which networks (S,) have one code for all rows, or one output: as NeuralDetector.what_is_dead has it."""
    logits_SNP, mean_SN1, _ = networks(images_NP)

    def varies(values_SNL: torch.Tensor) -> torch.Tensor:
        spread, size = values_SNL.amax(1) - values_SNL.amin(1), values_SNL.abs().amax(1)
        return (spread > ROUNDING * size).any(1)

    return ~(varies(mean_SN1) & varies(logits_SNP))


# 2 x 2


def outcome(output_NP: torch.Tensor, images_NP: torch.Tensor) -> str:
    """What a network makes of four different images, from which of its outputs are the same.

    `right`: every pixel near its colour. `two averaged`, `three averaged`: so many images share an output, the others
    are right. `two pairs`: two outputs, each for two images. `all grey`: one output.

    >>> four = four_images()
    >>> outcome(four, four), outcome(torch.full((4, 4), 0.5), four)
    ('right', 'all grey')
    >>> outcome(torch.stack([four[:2].mean(0), four[:2].mean(0), four[2], four[3]]), four)
    'two averaged'
    """
    away_NN = (output_NP[:, None] - output_NP[None]).abs().amax(2)
    groups = {tuple((away_N < SAME).nonzero().flatten().tolist()) for away_N in away_NN}
    sizes = sorted(len(group) for group in groups)
    alone = [group[0] for group in groups if len(group) == 1]
    right = (output_NP[alone] - images_NP[alone]).abs().lt(NEAR).all()
    if not right:
        return "other"
    names = {(1, 1, 1, 1): "right", (1, 1, 2): "two averaged", (1, 3): "three averaged"}
    return (names | {(2, 2): "two pairs", (4,): "all grey"}).get(tuple(sizes), "other")


def four_outcomes(
    seeds: int, width: int, steps: int, seed: int, beta: float | None
) -> tuple[Counter[str], Counter[str], int]:
    """How often each outcome is reached over the seeds; the same after restarts; and how many were trained again.

    Args:
        seeds: how many.
        width: of the hidden layers.
        steps: of training, with all four images in each.
        seed: that the others count from.
        beta: weight of the KL divergence; None: the classical autoencoder.
    """
    images = four_images()

    def trained(tried: int, places: list[int]) -> Networks:
        networks = Networks.of([(seed + 1_000 * tried) * 100_000 + place for place in places], 4, width, beta)
        train(networks, images, steps=steps, batch=4, rate=0.02, seed=seed + tried)
        return networks

    def reached() -> Counter[str]:
        return Counter(outcome(output_NP, images) for output_NP in networks(images)[0].sigmoid())

    networks, again = trained(0, list(range(seeds))), 0
    first = reached()
    for tried in range(1, RESTARTS + 1):
        places = dead(networks, images).nonzero().flatten().tolist()
        if not places:
            break
        networks.replace(places, trained(tried, places))
        again += len(places)
    return first, reached(), again


# 32 x 32


def best_of(networks: Networks, images_NP: torch.Tensor) -> tuple[int, float]:
    """The network with the lowest loss on its training images, and the share of networks about as good."""
    loss_S = losses(networks, images_NP, None)
    return int(loss_S.argmin()), float((loss_S <= AS_GOOD * loss_S.min()).float().mean())


def scores(networks: Networks, which: int, images_NP: torch.Tensor) -> dict[str, np.ndarray]:
    """Scores (N,) of one network, higher is more anomalous: mean squared error, wrong pixels, and its own loss."""
    own = {name: value[which : which + 1] for name, value in networks.parameters.items()}
    one = Networks(networks.base, own, networks.beta)
    logits_1NP, mean, log_variance = one(images_NP)
    output_NP = logits_1NP[0].sigmoid()
    entropy_N = functional.binary_cross_entropy_with_logits(logits_1NP[0], images_NP, reduction="none").sum(1)
    kl_N = kl_divergence(mean, log_variance)[0, :, 0] * (networks.beta or 0.0)
    found = {
        "error": (output_NP - images_NP).square().mean(1),
        "wrong_pixels": ((output_NP > 0.5).float() - images_NP).abs().mean(1),
        "loss": entropy_N + kl_N,
    }
    return {name: value.double().numpy() for name, value in found.items()}


def large_images(span: float, starts: int, steps: int, seed: int, side: int = SIDE) -> dict[str, Any]:
    """Both autoencoders on images of this side: reconstruction, codes, and scores of images that are not as they."""
    rng = np.random.default_rng(seed)
    training, judged = (line_images(rng.uniform(0, span, count), side) for count in (TRAINING, JUDGED))
    strange = {
        "defect": with_defect(judged, DEFECT * side // SIDE, rng),
        "no_line": without_line(JUDGED, side, rng),
    }
    found: dict[str, Any] = {}
    for name in ("classical", "variational"):
        seeds = [seed * 100_000 + number for number in range(starts)]
        networks = Networks.of(seeds, side * side, WIDTH, BETAS[name])
        train(networks, training, steps=steps, batch=50, rate=0.01, seed=seed)
        best, as_good = best_of(networks, training)
        good = scores(networks, best, judged)
        figures = {key: rounded(good[key].mean()) for key in ("error", "wrong_pixels")}
        figures |= {"starts_as_good": rounded(as_good), "starts_dead": int(dead(networks, training).sum())}
        _, mean, log_variance = networks(judged)
        if networks.beta is not None:
            figures["code_mean"], figures["code_deviation"] = rounded(mean[best].mean()), rounded(mean[best].std())
            figures["deviation_of_one"] = rounded((0.5 * log_variance[best]).exp().median())
        other = {kind: scores(networks, best, images) for kind, images in strange.items()}
        auroc = {kind: {score: ranked(good[score], of[score]) for score in good} for kind, of in other.items()}
        found[name] = figures | {"auroc": auroc}
    return found


def ranked(good_N: np.ndarray, other_N: np.ndarray) -> float:
    """AUROC of the others above the good ones."""
    return rounded(roc_auc_score(np.repeat([0, 1], [len(good_N), len(other_N)]), np.concatenate([good_N, other_N])))


def rounded(value: Any) -> float:
    """Four digits behind the point."""
    return round(float(value), 4)


def show(result: Mapping[str, Any], console: Console) -> None:
    """The tables of a result."""
    if "images_32" in result:
        large = {f"{kind}, {name}": of for kind, both in result["images_32"].items() for name, of in both.items()}
        table = Table("figure", "published", *large, title="1,000 lines of 32 x 32 pixels, F-2-1-2-F")
        rows = [("mean squared error, sigmoid", "error"), ("share of wrong pixels, step function", "wrong_pixels")]
        rows += [("mean of the codes", "code_mean"), ("deviation of the codes", "code_deviation")]
        rows += [("deviation of one code, median", "deviation_of_one"), ("share of seeds as good", "starts_as_good")]
        for label, key in rows:
            cells = [f"{figures[key]:.4f}" if key in figures else "—" for figures in large.values()]
            table.add_row(label, f"{PUBLISHED[key]:g}" if key in PUBLISHED else "—", *cells)
        for kind in ("defect", "no_line"):
            for score in ("error", "wrong_pixels", "loss"):
                cells = [f"{figures['auroc'][kind][score]:.3f}" for figures in large.values()]
                table.add_row(f"AUROC, {kind.replace('_', ' ')}, by {score.replace('_', ' ')}", "—", *cells)
        console.print(table)
    if "images_2" in result:
        title = f"the four 2 x 2 images, {result['seeds']} seeds, share that ends"
        table = Table("network", *OUTCOMES, title=title)
        for name, shares in result["images_2"].items():
            table.add_row(name, *(f"{shares[kind]:.3f}" for kind in OUTCOMES))
        console.print(table)


def main() -> None:
    """Print two tables, and one JSON object as the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="sizes of a test, not of a result")
    parts = ["images_32", "images_2"]
    parser.add_argument("--parts", nargs="+", default=parts, choices=parts)
    parser.add_argument("--seeds", type=int, default=300)
    parser.add_argument("--starts", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    use_threads(1)
    begin, quick = time.perf_counter(), options.quick
    seeds, starts = (8, 2) if quick else (options.seeds, options.starts)
    found: dict[str, Any] = {"quick": quick, "seeds": seeds, "starts": starts, "published": PUBLISHED}
    if "images_32" in options.parts:
        steps, side = (20, 8) if quick else (STEPS, SIDE)
        found["images_32"] = {
            name: large_images(span, starts, steps, options.seed, side) for name, span in SPANS.items()
        }
    if "images_2" in options.parts:
        found["images_2"] = {}
        for kind, beta in BETAS.items():
            for width in (WIDTH, *(WIDER[:1] if quick else WIDER)):
                first, after, again = four_outcomes(seeds, width, 30 if quick else FOUR_STEPS, options.seed, beta)
                name = f"{kind}, 4-{width}-1-{width}-4"
                found["images_2"][name] = {each: round(first[each] / seeds, 4) for each in OUTCOMES}
                restarted = {each: round(after[each] / seeds, 4) for each in OUTCOMES}
                found["images_2"][f"{name}, restart"] = restarted | {"trained_again": again}
    found["seconds"] = round(time.perf_counter() - begin)
    show(found, Console(width=150))
    print(json.dumps(found))


if __name__ == "__main__":
    main()

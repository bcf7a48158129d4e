"""Known results: what labels add to an autoencoder, first for digits, then for failures that nobody labelled.

- `mnist`, after Stept (2022): 10,000 rows, 784-392-98-16 and a head 40-40-10 over the code, alpha .5, RMSprop at .005,
  batches of 48, 100 epochs. Without labels the same head learns afterwards from the fixed code; with them both learn
  together. Accuracy on MNIST's test rows, for codes of 16 and of 2.
- `fleet`: simulated fleets of 60 machines over 75 days, a spectrum an hour. What is labelled are the last three days
  before some failures that the log knew before the judged rows begin (`few`: three of them; `all`); judged are the
  later failures, and all healthy rows of that time.
- `femto`: each of six bearings is judged by models of the other five, that know the last tenth of the lives of two of
  these (`few`) or of all five.

Ways to score: see `labelled.scored_by_all`. Compared is the AUROC of each judged failure (its faulty rows against all
healthy judged rows; FEMTO: each bearing's own) with that of the plain autoencoder, in pairs; the interval (90 %) draws
machines, or bearings, with replacement. On fleets also: failures caught at the budget of false episodes that
calibration rows set, those that only one of the two caught, an exact sign test of these, and the false episodes that
really came; and apart, failures of a mode that was among the labelled ones, and of other modes.

The recordings are found in HEARKEN_REAL_DATA or ../shared/data.
Usage: python -m benchmarks.known_results.labels [--quick] [--parts mnist fleet femto] [--fleets 43001 43002]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score
from torch.nn import functional

from benchmarks.known_results.coders import Coder, fit, in_parts, optimiser, supervised
from benchmarks.known_results.digits import ROOT, Digits, read_digits, real_folder
from benchmarks.known_results.labelled import Known, Scores, scored_by_all
from benchmarks.quality import leave_one_machine_out, sign_flip_p
from benchmarks.robustness import MAX_TRAINING_ROWS, plant_of, simulated_fleet, taken, with_autoencoder
from pipeline.alerts import AlertPolicy, Timeline, typical_interval_us
from pipeline.backtest import BacktestRequest, read_recording, take
from pipeline.detectors.networks import DenseStack
from pipeline.engine import Loss
from pipeline.judging.judged import FAULTY, HEALTHY
from pipeline.judging.outcomes import budget_threshold, outcome_at
from pipeline.params import OptimiserParams, Params, load_params
from pipeline.schema import MICROSECONDS_PER_DAY, MICROSECONDS_PER_HOUR, FloatN, Role, times_us
from pipeline.train import use_threads

WIDTHS, HEAD, ALPHA, CODES = (392, 98), (40, 40, 10), 0.5, (16, 2)
PUBLISHED = {"without labels": [0.60, 0.70], "with labels": 0.951}  # of the code of 16
FLEETS, MACHINES, DAYS = (43_001, 43_002, 43_003, 43_004), 60, 75.0
LABELLED_HOURS, FEW_FAILURES, FEW_BEARINGS = 72, 3, 2
DRAWS, CONFIDENCE = 1000, 0.9


# digits


def rmsprop(epochs: int) -> OptimiserParams:
    """As published."""
    return optimiser(epochs, name="rmsprop", schedule="constant", learning_rate=0.005, batch_rows=48)


def with_digit(rows_NF: torch.Tensor, digit_N: torch.Tensor) -> torch.Tensor:
    """Rows whose last column is the label: what the training loop shuffles must be one matrix."""
    return torch.cat([rows_NF, digit_N[:, None].float()], dim=1)


def reconstruction_and_labels(coder: Coder, alpha: float) -> Loss:
    """alpha of the squared error and the rest of the cross-entropy; the last column is the label."""

    def loss(x_BG: torch.Tensor, _epoch: int, _noise: torch.Generator | None) -> dict[str, torch.Tensor]:
        x_BF, label_B = x_BG[:, :-1], x_BG[:, -1].long()
        code_BL = coder.code(x_BF)
        error = functional.mse_loss(coder.decoder(code_BL), x_BF)
        if alpha == 1:
            return {"loss": error}
        return {"loss": supervised(error, coder.logits(code_BL), label_B, alpha)}

    return loss


def labels_of_codes(head: DenseStack) -> Loss:
    """Cross-entropy of a head over fixed codes; the last column is the label."""

    def loss(x_BG: torch.Tensor, _epoch: int, _noise: torch.Generator | None) -> dict[str, torch.Tensor]:
        return {"loss": functional.cross_entropy(head(x_BG[:, :-1]), x_BG[:, -1].long())}

    return loss


def digits_by_code(digits: Digits, width: int, epochs: int, seed: int) -> dict[str, float]:
    """Accuracy on the judged rows, and squared error, with labels and without."""
    fits_N, held_N = digits.fitting()
    rows_NG = with_digit(digits.train, digits.train_digit)
    found = {}
    for name, alpha in (("without labels", 1.0), ("with labels", ALPHA)):
        coder = Coder([digits.pixels, *WIDTHS, width], "relu", head=HEAD, seed=seed)
        fit(coder, reconstruction_and_labels(coder, alpha), rows_NG[fits_N], rows_NG[held_N], rmsprop(epochs), seed)
        if alpha == 1:
            codes_NG = with_digit(in_parts(coder.code, digits.train), digits.train_digit)
            assert coder.head is not None
            fit(coder.head, labels_of_codes(coder.head), codes_NG[fits_N], codes_NG[held_N], rmsprop(epochs), seed)
        named_N = in_parts(lambda rows, coder=coder: coder.logits(coder.code(rows)), digits.test).argmax(1)
        found[name] = round(float((named_N == digits.test_digit).float().mean()), 4)
        error = (in_parts(coder, digits.test) - digits.test).square().mean()
        found[f"error {name}"] = round(float(error), 5)
    return found


def mnist(rows: int, epochs: int, seed: int, *, quick: bool) -> dict[str, Any]:
    """Accuracy for each width of the code."""
    digits = read_digits(rows, 100 if quick else None, seed)
    found: dict[str, Any] = {"source": digits.source, "rows": len(digits.train), "judged": len(digits.test)}
    found["published"] = PUBLISHED
    return found | {f"code of {width}": digits_by_code(digits, width, epochs, seed) for width in CODES}


# failures


@dataclass
class Pairs:
    """One figure per judged failure and way, the group that is drawn as one, and whether its mode was labelled."""

    auroc: list[dict[str, float]]
    group: list[str]
    known_mode: dict[str, list[bool]]  # by how many failures are labelled

    def against_plain(self, way: str, seed: int) -> dict[str, Any]:
        """Mean difference with its interval, the share of failures that rank higher, and both kinds of modes."""
        difference = np.array([of[way] - of["plain"] for of in self.auroc])
        found: dict[str, Any] = {
            "auroc": rounded(np.mean([of[way] for of in self.auroc])),
            "difference": rounded(difference.mean()),
            "interval": group_interval(difference, self.group, seed),
            "higher_for": f"{int((difference > 0).sum())} of {len(difference)}",
        }
        known = np.array(self.known_mode.get(way.partition("/")[2], []), bool)
        for name, mask in (("modes_labelled", known), ("other_modes", ~known)):
            if len(known):
                part = difference[mask]
                mean = rounded(part.mean()) if len(part) else None
                found[name] = {"failures": len(part), "difference": mean}
                groups = [group for group, keep in zip(self.group, mask, strict=True) if keep]
                found[name]["interval"] = group_interval(part, groups, seed)
        return found


def group_interval(value_K: FloatN, groups: Sequence[str], seed: int) -> list[float] | None:
    """Interval of a mean when groups are drawn with replacement; None: fewer than two groups.

    >>> group_interval(np.array([0.1, 0.1, 0.1]), ["a", "a", "b"], 1)
    [0.1, 0.1]
    """
    names, code_K = np.unique(np.asarray(groups, dtype=object).astype(str), return_inverse=True)
    if len(names) < 2:
        return None
    total_G, count_G = np.bincount(code_K, value_K), np.bincount(code_K)
    drawn_DG = np.random.default_rng(seed).integers(0, len(names), (DRAWS, len(names)))
    means_D = total_G[drawn_DG].sum(1) / count_G[drawn_DG].sum(1)
    return [rounded(end) for end in np.quantile(means_D, [0.5 - CONFIDENCE / 2, 0.5 + CONFIDENCE / 2])]


def sign_test(only_this: int, only_plain: int) -> float | None:
    """Two-sided exact p value of failures that only one of two ways caught (McNemar); None where there are none.

    >>> sign_test(5, 0), sign_test(0, 0)
    (0.0625, None)
    """
    both = only_this + only_plain
    return rounded(binomtest(only_this, both).pvalue) if both else None


def fleet(seeds: Sequence[int], machines: int, days: float, params: Params) -> dict[str, Any]:
    """Failures of simulated fleets, later than those that are labelled."""
    pairs = Pairs([], [], {"few": [], "all": []})
    caught: list[dict[str, bool]] = []
    false: dict[str, float] = {}
    labelled, machine_days = {"few": 0, "all": 0}, 0.0
    for seed in seeds:
        whole = simulated_fleet(params, seed, machines, days)
        plant = plant_of(whole, params)
        rows, rng = whole.rows, np.random.default_rng(seed)
        begins = int(plant.test.time_us.min())
        past = [
            each | {"end_us": int(end)}
            for each, end in zip(whole.failures.to_pylist(), times_us(whole.failures["time"]), strict=True)
            if end < begins
        ]
        chosen = {"few": [past[i] for i in rng.permutation(len(past))[:FEW_FAILURES]], "all": past}
        faulty = {}
        for name, failures in chosen.items():
            mask = np.zeros(len(rows), bool)
            for failure in failures:
                mask |= before_failure(rows, str(failure["machine_id"]), failure["end_us"])
            faulty[name], labelled[name] = taken(rows, mask), labelled[name] + len(failures)
        known = Known(plant.spec, plant.fitting, plant.fitting_role, plant.calibration)
        calibration, judged = scored_by_all(known, faulty, plant.test, params, seed)
        outcomes, days_here = caught_by_all(plant, calibration, judged, params)
        machine_days += days_here
        for way, outcome in outcomes.items():
            false[way] = false.get(way, 0.0) + outcome.false_episodes
        healthy = plant.label == HEALTHY
        for event in plant.events:
            mine = (plant.test.machine == event.machine) & (plant.label == FAULTY)
            mine &= (plant.test.time_us >= event.start_us) & (plant.test.time_us <= event.end_us)
            if not mine.any():
                continue
            pairs.auroc.append({way: separated(scores[healthy], scores[mine]) for way, scores in judged.items()})
            pairs.group.append(f"{seed}/{event.machine}")
            for name, failures in chosen.items():
                modes = {failure["failure_mode"] for failure in failures}
                pairs.known_mode[name].append(event.failure_mode in modes)
            caught.append({way: event.failure_id in outcome.caught for way, outcome in outcomes.items()})
    found: dict[str, Any] = {"fleets": list(seeds), "failures": len(caught), "labelled": labelled, "ways": {}}
    for way in pairs.auroc[0]:
        mine, plain = (np.array([each[key] for each in caught]) for key in (way, "plain"))
        only, other = int((mine & ~plain).sum()), int((plain & ~mine).sum())
        found["ways"][way] = pairs.against_plain(way, seeds[0]) | {
            "caught": int(mine.sum()),
            "only_this": only,
            "only_plain": other,
            "p": sign_test(only, other),
            "false_episodes_per_machine_day": rounded(false[way] / machine_days),
        }
    return found


def before_failure(rows: Any, machine: str, end_us: int) -> np.ndarray:
    """Rows (N,) of a machine in the last LABELLED_HOURS before its failure."""
    mine = rows.machine == list(rows.machines).index(machine)
    return np.asarray(
        mine & (rows.time_us <= end_us) & (rows.time_us > end_us - LABELLED_HOURS * MICROSECONDS_PER_HOUR)
    )


def caught_by_all(plant: Any, calibration: Scores, judged: Scores, params: Params) -> tuple[dict[str, Any], float]:
    """What each way catches at the budget that calibration rows set; and the healthy machine-days judged."""
    rows, test = plant.calibration, plant.test
    interval_us = typical_interval_us(rows.machine, rows.time_us)
    policy = AlertPolicy.fitted_to(params.calibrate.policy, interval_us)
    allowed = params.evaluate.false_episodes_per_machine_day * len(rows) * interval_us / MICROSECONDS_PER_DAY
    line, later = (Timeline.of(each.machine, each.time_us, policy) for each in (rows, test))
    outcomes = {
        way: outcome_at(scores > budget_threshold(calibration[way], line, allowed), later, plant.events)
        for way, scores in judged.items()
    }
    return outcomes, float((plant.label == HEALTHY).sum() * interval_us / MICROSECONDS_PER_DAY)


def separated(healthy_N: FloatN, faulty_N: FloatN) -> float:
    """AUROC of faulty above healthy scores."""
    label = np.repeat([0, 1], [len(healthy_N), len(faulty_N)])
    return float(roc_auc_score(label, np.concatenate([healthy_N, faulty_N])))


def femto(name: str, params: Params, seeds: Sequence[int], bearings: int | None) -> dict[str, Any]:
    """Each bearing by models of the others, which know the ends of some of their lives; a mean over the seeds.

    Args:
        name: of the recording.
        params: settings of the project.
        seeds: of the networks, and of who is known where a few are.
        bearings: how many are judged; None: all.
    """
    path = real_folder() / f"{name}.parquet"
    if not path.is_file():
        return {"ways": None, "reason": f"there is no {path.name} in {path.parent}"}
    request = BacktestRequest(path, timezone="UTC", time="relative")
    recording = read_recording(request, params.train.baseline.conditions_from)
    pairs = Pairs([], [], {})
    for left, fold in enumerate(leave_one_machine_out(recording)[:bearings]):
        machine, label = recording.rows.machine, recording.label
        fits = np.isin(fold.role, [str(role) for role in (Role.TRAIN, Role.VALIDATION, Role.BASELINE)])
        calibrates, tests = fold.role == Role.CALIBRATION, (fold.role == Role.TEST) & (label >= 0)
        fitting, calibration, judged = (take(recording, fold.role, mask) for mask in (fits, calibrates, tests))
        known = Known(recording.fleet, fitting, fold.role[fits], calibration)
        runs = []
        for seed in seeds:
            others = np.random.default_rng([seed, left]).permutation(
                [each for each in np.unique(machine) if each != left]
            )
            faulty = {
                amount: take(recording, fold.role, (label == FAULTY) & np.isin(machine, some))
                for amount, some in (("few", others[:FEW_BEARINGS]), ("all", others))
            }
            _, scores = scored_by_all(known, faulty, judged, params, seed)
            bad = label[tests] == FAULTY
            runs.append({way: separated(values[~bad], values[bad]) for way, values in scores.items()})
        pairs.auroc.append({way: float(np.mean([run[way] for run in runs])) for way in runs[0]})
        pairs.group.append(recording.rows.machines[left])
    ways = {way: pairs.against_plain(way, seeds[0]) for way in pairs.auroc[0]}
    for way, figures in ways.items():
        difference = [of[way] - of["plain"] for of in pairs.auroc]
        figures["p_better"], figures["p_worse"] = (
            rounded(sign_flip_p([sign * value for value in difference])) for sign in (1, -1)
        )
        figures["by_bearing"] = dict(zip(pairs.group, [rounded(of[way]) for of in pairs.auroc], strict=True))
    return {"bearings": len(pairs.group), "seeds": list(seeds), "ways": ways}


def rounded(value: Any) -> float:
    """Four digits behind the point."""
    return round(float(value), 4)


def show(result: Mapping[str, Any], console: Console) -> None:
    """The tables of a result."""
    if "mnist" in result:
        part = result["mnist"]
        title = f"{part['source']}: {part['rows']} rows train, {part['judged']} judge; digits named rightly"
        table = Table("", "published, code of 16", *(f"code of {width}" for width in CODES), title=title)
        for name, published in PUBLISHED.items():
            told = "–".join(f"{each:.2f}" for each in published) if isinstance(published, list) else f"{published:.3f}"
            table.add_row(name, told, *(f"{part[f'code of {width}'][name]:.4f}" for width in CODES))
        console.print(table)
    for name, part in result.items():
        if not isinstance(part, Mapping) or "ways" not in part:
            continue
        if part["ways"] is None:
            console.print(f"{name}: not judged, {part['reason']}")
            continue
        keys = ["auroc", "difference", "interval", "higher_for"]
        more = [
            key
            for key in ("caught", "only_this", "only_plain", "p", "p_better", "p_worse")
            if key in part["ways"]["plain"]
        ]
        if "false_episodes_per_machine_day" in part["ways"]["plain"]:
            more.append("false_episodes_per_machine_day")
        table = Table("way", *(key.replace("_", " ") for key in keys + more), title=name)
        for way, figures in part["ways"].items():
            table.add_row(way, *(str(figures[key]) for key in keys + more))
        console.print(table)
        for way, figures in part["ways"].items():
            if "/" in way and "modes_labelled" in figures:
                told = [f"{kind.replace('_', ' ')} {figures[kind]}" for kind in ("modes_labelled", "other_modes")]
                console.print(f"{way}: {'; '.join(told)}")


def main() -> None:
    """Print the tables, and one JSON object as the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="sizes of a test, not of a result")
    parser.add_argument("--parts", nargs="+", default=["mnist", "fleet", "femto"], choices=["mnist", "fleet", "femto"])
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--fleets", type=int, nargs="+", default=FLEETS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    options = parser.parse_args()
    use_threads(1)
    begin, quick = time.perf_counter(), options.quick
    params = with_autoencoder(load_params(ROOT / "params.yaml"))
    if quick:
        params = with_autoencoder(params, optimiser={"max_epochs": 2, "patience": 2})
    found: dict[str, Any] = {"quick": quick, "max_rows": MAX_TRAINING_ROWS}
    if "mnist" in options.parts:
        found["mnist"] = mnist(
            300 if quick else options.rows, 1 if quick else options.epochs, options.seeds[0], quick=quick
        )
    if "fleet" in options.parts:
        size = (10, 50.0) if quick else (MACHINES, DAYS)
        found["fleet"] = fleet(options.fleets[:1] if quick else options.fleets, *size, params)
    if "femto" in options.parts:
        for name in ("femto_h",) if quick else ("femto_h", "femto_v"):
            found[name] = femto(name, params, options.seeds[:1] if quick else options.seeds, 2 if quick else None)
    found["seconds"] = round(time.perf_counter() - begin)
    show(found, Console(width=190))
    print(json.dumps(found))


if __name__ == "__main__":
    main()

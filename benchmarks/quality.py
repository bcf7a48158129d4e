"""How well every detector ranks faulty rows above healthy ones, on recordings and tables that nobody here made.

Rows that described a machine or fitted a model are in no figure. All settings are those of params.yaml; none was chosen
on these sets. What is random (networks, forest, the split of the tables) runs with three seeds: their mean and range.

- `femto_h`, `femto_v`: six bearings run to failure, the first 15 % of each life describes it. Each is judged, from 15 %
  on, by models that the other five trained (15 to 40 %); label 0 is the first half of a life, 1 its last tenth. Pooled:
  scores of a fold in units of the 99th percentile of its calibration rows (of the five); and the mean per bearing. An
  exact sign-flip test over the bearings compares each detector with the squared distance.
- `motor45kw`: odd healthy records train, all other records are judged; then even ones; the mean of both.
- `cooling_fan`: the first half of the healthy windows of each of 17 speeds trains, the rest is judged.
  `cooling_fan_new_speeds`: every other speed trains, the speeds between are judged; both ways.
- `adbench/*`: twelve tables of numbers (kind features), at most 5,000 rows of each (both labels in proportion); half
  of the normal rows train. `adbench` is the mean of the tables, with a sign-flip test against the isolation forest.

Intervals (90 %) draw bearings, records or speeds, and for `adbench` tables, with replacement. scikit-learn stands
beside: PCA (16 components, half of the features where there are no more than 16), IsolationForest, LocalOutlierFactor,
on log magnitudes that are standardised by the training rows (FEMTO: by each bearing's own first 15 %).

The recordings are found in HEARKEN_REAL_DATA or ../shared/data.
Usage: python benchmarks/quality.py [--sets femto_h motor45kw adbench] [--detectors autoencoder pca] [--seeds 301 302]
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table
from sklearn.decomposition import PCA
from sklearn.ensemble import IsolationForest
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.neighbors import LocalOutlierFactor

from pipeline.backtest import BacktestRequest, LabelledRecording, assign_roles, read_recording, select, take
from pipeline.errors import HearkenError, UserError
from pipeline.judging.judged import FAULTY, HEALTHY, UNKNOWN
from pipeline.params import NEURAL_DETECTORS, Params, load_params
from pipeline.schema import BoolN, FloatN, IntN, Role
from pipeline.train import train_detector, use_threads

ROOT = Path(__file__).resolve().parents[1]
SEEDS = (301, 302, 303)
RANDOM_DETECTORS = (*NEURAL_DETECTORS, "isolation_forest")
DESCRIBES, TRAINS, JUDGED = "life_frac < 0.15", "life_frac >= 0.15 and life_frac < 0.4", "life_frac >= 0.15"
VALIDATION_EVERY = 5  # every fifth record, or block of rows, of what trains says when to stop
MAX_TABLE_ROWS = 5_000
UNIT_PERCENTILE = 99.0  # as in the detectors' own scores
DRAWS, CONFIDENCE = 300, 0.9
RIVALS = {"femto_h": "squared_distance", "femto_v": "squared_distance", "adbench": "isolation_forest"}
GOALS = {"femto_h": 0.95, "femto_v": 0.90, "motor45kw": 0.995, "cooling_fan": 0.96}
Roles = npt.NDArray[np.object_]


@dataclass(frozen=True)
class Fold:
    """Role of each row (N,), and the group (bearing, record, speed, row) that intervals draw as one."""

    role: Roles
    group: IntN


@dataclass(frozen=True)
class Judged:
    """Scores of the judged rows of one fold whose label is known, in units of its calibration rows where it has any."""

    label: npt.NDArray[np.int8]
    group: IntN
    score: FloatN


@dataclass(frozen=True)
class DataSet:
    """A recording, how it is split for one seed, and whether its folds make one ranking."""

    name: str
    recording: LabelledRecording
    folds: Callable[[int], list[Fold]]
    pooled: bool = False
    split_is_random: bool = False


@dataclass
class Result:
    """Figures of one detector on one set: of each seed, and of each group of the folds."""

    auroc: list[float] = field(default_factory=list)
    average_precision: list[float] = field(default_factory=list)
    by_fold: list[list[float]] = field(default_factory=list)
    interval: list[float] | None = None
    reason: str | None = None

    def to_json(self, names: Sequence[str] | None) -> dict[str, Any]:
        """Mean and range over the seeds; null with a reason where the detector cannot judge the set."""
        if not self.auroc:
            return {"auroc": None, "average_precision": None, "reason": self.reason}
        found: dict[str, Any] = {
            "auroc": round(float(np.mean(self.auroc)), 4),
            "average_precision": round(float(np.mean(self.average_precision)), 4),
        }
        if len(self.auroc) > 1:
            found["auroc_range"] = [round(min(self.auroc), 4), round(max(self.auroc), 4)]
        if self.interval is not None:
            found["auroc_ci"] = self.interval
        if names is not None:
            per_fold = np.mean(self.by_fold, axis=0)
            found["auroc_mean_per_machine"] = round(float(per_fold.mean()), 4)
            found["auroc_per_machine"] = {
                name: round(float(value), 4) for name, value in zip(names, per_fold, strict=True)
            }
        return found


def leave_one_machine_out(recording: LabelledRecording) -> list[Fold]:
    """FEMTO's protocol: a fold per bearing; its own baseline rows and all rows of the others stay out of the test."""
    describes, trains, judged = (select(recording, query, "query") for query in (DESCRIBES, TRAINS, JUDGED))
    machine = recording.rows.machine
    return [
        Fold(assign_roles(recording, describes, trains & (machine != left), judged & (machine == left)), machine)
        for left in range(len(recording.rows.machines))
    ]


def every_other(label_N: npt.NDArray[np.int8], group_N: IntN, number_N: IntN, *, new_groups_only: bool) -> list[Fold]:
    """Healthy rows of odd groups train, then those of even ones; all others are judged, or those of other numbers only.

    Args:
        label_N: 0 healthy, 1 faulty.
        group_N: record of each row, drawn as one by intervals.
        number_N: what is odd or even; every fifth of the numbers that train validates.
        new_groups_only: judge no row, healthy or faulty, whose number trains.
    """
    folds = []
    for parity in (1, 0):
        trains = (label_N == HEALTHY) & (number_N % 2 == parity)
        tests = (number_N % 2 != parity) if new_groups_only else ~trains
        order = np.searchsorted(np.unique(number_N[trains]), number_N)
        role = _roles(trains, tests)
        role[trains & (order % VALIDATION_EVERY == VALIDATION_EVERY - 1)] = str(Role.VALIDATION)
        folds.append(Fold(role, group_N))
    return folds


def first_half_of_each(label_N: npt.NDArray[np.int8], group_N: IntN) -> list[Fold]:
    """The first half of the healthy rows of each group trains, later ones and all faulty ones are judged.

    Rows are in time order. The last fifth of what trains validates; the row between the halves is used for nothing.
    """
    role = _roles(np.zeros(len(label_N), bool), label_N == FAULTY)
    for group in np.unique(group_N):
        mine = np.flatnonzero((group_N == group) & (label_N == HEALTHY))
        half = len(mine) // 2
        role[mine[:half]] = str(Role.TRAIN)
        role[mine[half - half // VALIDATION_EVERY : half]] = str(Role.VALIDATION)
        role[mine[half + 1 :]] = str(Role.TEST)
    return [Fold(role, group_N)]


def half_of_normals(label_N: npt.NDArray[np.int8], seed: int, max_rows: int) -> list[Fold]:
    """Of at most `max_rows` rows, both labels in proportion: half of the normal ones train, all others are judged."""
    rng = np.random.default_rng(seed)
    share = min(1.0, max_rows / len(label_N))
    normal, odd = (rng.permutation(np.flatnonzero(label_N == kind)) for kind in (HEALTHY, FAULTY))
    normal, odd = normal[: round(share * len(normal))], odd[: round(share * len(odd))]
    trains = normal[: len(normal) // 2]
    role = _roles(np.zeros(len(label_N), bool), np.isin(np.arange(len(label_N)), np.r_[normal, odd]))
    role[trains] = str(Role.TRAIN)
    role[trains[::VALIDATION_EVERY]] = str(Role.VALIDATION)
    return [Fold(role, np.arange(len(label_N)))]


def _roles(trains_N: BoolN, tests_N: BoolN) -> Roles:
    role = np.full(len(trains_N), str(Role.NONE), dtype=object)
    role[tests_N] = str(Role.TEST)
    role[trains_N] = str(Role.TRAIN)
    return role


def sign_flip_p(difference_K: Sequence[float]) -> float:
    """One-sided p value of a mean difference above zero: share of all 2^K signs whose mean is at least as large.

    Exact (Fisher 1935): where nothing differs, each difference is as likely to have the other sign.

    >>> sign_flip_p([0.1, 0.2, 0.3])
    0.125
    """
    values = np.asarray(difference_K, dtype=np.float64)
    signs = np.array(list(itertools.product((1.0, -1.0), repeat=len(values))))
    means = signs @ values / len(values)
    return float((means >= values.mean() - 1e-12).mean())


def drawn_interval(folds: Sequence[Judged], seed: int) -> list[float] | None:
    """5th and 95th percentile of the mean AUROC of the folds when groups are drawn with replacement."""
    groups = np.unique(np.concatenate([fold.group for fold in folds]))
    rng = np.random.default_rng(seed)
    weight_DG = rng.multinomial(len(groups), np.full(len(groups), 1 / len(groups)), size=DRAWS).astype(np.float64)
    total_D = np.zeros(DRAWS)
    for fold in folds:
        order = np.argsort(fold.score, kind="stable")
        weight_DN = weight_DG[:, np.searchsorted(groups, fold.group[order])]
        healthy_DN = weight_DN * (fold.label[order] == HEALTHY)
        faulty_DN = weight_DN - healthy_DN
        pairs_D = healthy_DN.sum(1) * faulty_DN.sum(1)
        wins_D = (faulty_DN * np.cumsum(healthy_DN, 1)).sum(1)
        total_D += np.divide(wins_D, pairs_D, out=np.full(DRAWS, np.nan), where=pairs_D > 0)
    usable = total_D[np.isfinite(total_D)] / len(folds)
    if len(groups) < 2 or len(usable) < DRAWS // 2:
        return None
    return [round(float(end), 4) for end in np.quantile(usable, [0.5 - CONFIDENCE / 2, 0.5 + CONFIDENCE / 2])]


def by_detector(name: str, recording: LabelledRecording, fold: Fold, params: Params, seed: int) -> Judged:
    """Train through the project's own door and score the judged rows as the service would."""
    fits = np.isin(fold.role, [str(Role.TRAIN), str(Role.VALIDATION), str(Role.BASELINE)])
    detector, _ = train_detector(
        name, take(recording, fold.role, fits), fold.role[fits], recording.fleet, params.train, seed=seed
    )

    def scored(mask_N: BoolN) -> FloatN:
        rows = take(recording, fold.role, mask_N)
        return detector.score(rows.spectra, detector.baselines.codes(rows.keys))

    return _judged(recording, fold, scored)


def by_scikit_learn(name: str, recording: LabelledRecording, fold: Fold, params: Params, seed: int) -> Judged:  # noqa: ARG001
    """The reference: the same rows, standardised by what describes them, and an estimator out of the box."""
    spectra = recording.rows.spectra.astype(np.float64)
    if recording.fleet.kind == "spectrum":
        spectra = np.log(np.maximum(spectra, 1e-9))
    fits = np.isin(fold.role, [str(Role.TRAIN), str(Role.VALIDATION)])
    describes = fold.role == Role.BASELINE
    alike = np.empty_like(spectra)
    for machine in np.unique(recording.rows.machine):
        mine = recording.rows.machine == machine
        source = mine & describes if (mine & describes).any() else fits
        alike[mine] = (spectra[mine] - spectra[source].mean(0)) / np.maximum(spectra[source].std(0), 1e-9)
    score = _reference(name, alike[fits], seed)
    return _judged(recording, fold, lambda mask_N: score(alike[mask_N]))


def _reference(name: str, train_NF: FloatN, seed: int) -> Callable[[FloatN], FloatN]:
    if name == "sklearn_pca":
        features = train_NF.shape[1]
        model = PCA(16 if features > 16 else max(1, features // 2)).fit(train_NF)
        return lambda x: np.square(x - model.inverse_transform(model.transform(x))).sum(1)
    if name == "sklearn_isolation_forest":
        forest = IsolationForest(random_state=seed).fit(train_NF)
        return lambda x: -forest.score_samples(x)
    lof = LocalOutlierFactor(novelty=True).fit(train_NF)
    return lambda x: -lof.score_samples(x)


REFERENCES = ("sklearn_pca", "sklearn_isolation_forest", "sklearn_lof")


def _judged(recording: LabelledRecording, fold: Fold, scored: Callable[[BoolN], FloatN]) -> Judged:
    tests = (fold.role == Role.TEST) & (recording.label != UNKNOWN)
    score, calibrates = scored(tests), fold.role == Role.CALIBRATION
    if calibrates.any():
        score = score / max(float(np.percentile(scored(calibrates), UNIT_PERCENTILE)), 1e-12)
    return Judged(recording.label[tests], fold.group[tests], score)


def measure(data: DataSet, name: str, params: Params, seeds: Sequence[int] = SEEDS) -> Result:
    """One detector on one set, with every seed, or with the first where nothing is random."""
    judge = by_scikit_learn if name in REFERENCES else by_detector
    random = data.split_is_random or name in (*RANDOM_DETECTORS, "sklearn_isolation_forest")
    result = Result()
    for seed in seeds if random else seeds[:1]:
        try:
            folds = [judge(name, data.recording, fold, params, seed) for fold in data.folds(seed)]
        except HearkenError as error:
            return Result(reason=str(error))
        whole = [_pool(folds)] if data.pooled else folds
        result.auroc.append(float(np.mean([roc_auc_score(part.label, part.score) for part in whole])))
        result.average_precision.append(
            float(np.mean([average_precision_score(part.label, part.score) for part in whole]))
        )
        result.by_fold.append([float(roc_auc_score(fold.label, fold.score)) for fold in folds])
        if seed == seeds[0] and not data.split_is_random:
            result.interval = drawn_interval(whole, seed)
    return result


def _pool(folds: Sequence[Judged]) -> Judged:
    label, group, score = (
        np.concatenate([getattr(fold, part) for fold in folds]) for part in ("label", "group", "score")
    )
    return Judged(label, group, score)


def data_sets(folder: Path, wanted: Sequence[str], params: Params) -> list[DataSet]:
    """The sets asked for, of those that there are; `adbench` stands for all its tables.

    Raises:
        UserError: a set that is not there.
    """
    tables = sorted(path.stem for path in (folder / "adbench").glob("*.parquet"))
    known = ["femto_h", "femto_v", "motor45kw", "cooling_fan", "cooling_fan_new_speeds", "adbench"]
    known += [f"adbench/{table}" for table in tables]
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise UserError(f"--sets: got {', '.join(unknown)}, expected some of {', '.join(known)}.")
    names = list(wanted) or known[:6]
    names = [part for name in names for part in (known[6:] if name == "adbench" else [name])]
    return [_data_set(folder, name, params) for name in names]


def _data_set(folder: Path, name: str, params: Params) -> DataSet:
    table = name.startswith("adbench/")
    file = name.removesuffix("_new_speeds")
    request = BacktestRequest(
        folder / f"{file}.parquet", timezone="UTC", time="relative", kind="features" if table else "spectrum"
    )
    recording = read_recording(request, params.train.baseline.conditions_from)
    label, frame = recording.label, recording.frame
    if table:
        return DataSet(name, recording, lambda seed: half_of_normals(label, seed, MAX_TABLE_ROWS), split_is_random=True)
    if name.startswith("femto"):
        return DataSet(name, recording, lambda _seed: leave_one_machine_out(recording), pooled=True)
    record = np.unique(frame["record"].to_numpy(dtype=str), return_inverse=True)[1]
    if name == "motor45kw":
        number = frame["record"].str[1:].to_numpy(dtype=np.int64)
        return DataSet(name, recording, lambda _seed: every_other(label, record, number, new_groups_only=False))
    speed = np.unique(frame["condition"].to_numpy(dtype=str), return_inverse=True)[1]
    if name == "cooling_fan":
        return DataSet(name, recording, lambda _seed: first_half_of_each(label, speed))
    return DataSet(name, recording, lambda _seed: every_other(label, record, speed, new_groups_only=True))


def mean_of_tables(results: dict[str, dict[str, Result]], seed: int) -> dict[str, dict[str, Any]]:
    """Mean figures over the tables that every detector could judge, with an interval that draws tables."""
    tables = [name for name in results if name.startswith("adbench/")]
    found: dict[str, dict[str, Any]] = {}
    for detector in results[tables[0]] if tables else []:
        parts = [results[table][detector] for table in tables]
        if all(part.auroc for part in parts):
            auroc = np.array([np.mean(part.auroc) for part in parts])
            drawn = np.random.default_rng(seed).choice(auroc, (DRAWS * 10, len(auroc))).mean(1)
            ends = np.quantile(drawn, [0.5 - CONFIDENCE / 2, 0.5 + CONFIDENCE / 2])
            precision = np.mean([np.mean(part.average_precision) for part in parts])
            found[detector] = {
                "auroc": round(float(auroc.mean()), 4),
                "average_precision": round(float(precision), 4),
                "auroc_ci": [round(float(end), 4) for end in ends],
                "tables": len(tables),
            }
    return found


def sign_flips(results: dict[str, dict[str, Result]]) -> dict[str, dict[str, Any]]:
    """Each detector against the rival of the set: mean difference over bearings (or tables), wins, and the p value."""
    found: dict[str, dict[str, Any]] = {}
    for name, rival in RIVALS.items():
        parts = [results[key] for key in results if key == name or key.startswith(f"{name}/")]
        if not parts or any(rival not in part or not part[rival].auroc for part in parts):
            continue
        found[name] = {"against": rival}
        for detector in parts[0]:
            if detector != rival and all(part[detector].auroc for part in parts):
                mine, its = (
                    np.concatenate([np.mean(part[key].by_fold, axis=0) for part in parts]) for key in (detector, rival)
                )
                found[name][detector] = {
                    "mean_difference": round(float((mine - its).mean()), 4),
                    "better_on": f"{int((mine > its).sum())} of {len(mine)}",
                    "p_better": round(sign_flip_p(mine - its), 4),
                    "p_worse": round(sign_flip_p(its - mine), 4),
                }
    return found


def goals(sets: dict[str, dict[str, Any]], tests: dict[str, dict[str, Any]], detector: str) -> dict[str, Any]:
    """What was aimed at for the default detector, what came out, and whether that is enough."""
    found: dict[str, Any] = {}
    for name, goal in GOALS.items():
        if name in sets and sets[name].get(detector, {}).get("auroc") is not None:
            measured = sets[name][detector]["auroc"]
            found[name] = {"goal": goal, "measured": measured, "met": measured >= goal}
        if name in tests and detector in tests[name]:
            p = tests[name][detector]["p_better"]
            found[f"{name}_better_than_squared_distance"] = {"goal": "p < 0.05", "measured": p, "met": p < 0.05}
    if "adbench" in sets and {detector, "isolation_forest"} <= sets["adbench"].keys():
        forest, measured = (sets["adbench"][key]["auroc"] for key in ("isolation_forest", detector))
        found["adbench"] = {"goal": f"above {forest}", "measured": measured, "met": measured > forest}
    return found


def real_folder() -> Path:
    """Where the recordings are.

    Raises:
        UserError: nowhere.
    """
    folder = Path(os.environ.get("HEARKEN_REAL_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        raise UserError(f"HEARKEN_REAL_DATA: got {folder}, which is no folder; expected that of the recordings.")
    return folder


def show(result: dict[str, Any]) -> None:
    """AUROC / average precision of every detector on every set; then tests and goals."""
    console = Console(width=180)
    names = list(dict.fromkeys(name for figures in result["sets"].values() for name in figures))
    table = Table(title="AUROC / average precision")
    for heading in ("set", *names):
        table.add_column(heading.replace("sklearn_", "sklearn\n"), justify="left" if heading == "set" else "right")
    for name, figures in result["sets"].items():
        cells = [figures.get(detector, {}) for detector in names]
        table.add_row(
            name,
            *(f"{c['auroc']:.3f}/{c['average_precision']:.3f}" if c.get("auroc") is not None else "—" for c in cells),
        )
    console.print(table)
    for name, figures in result["sign_flip"].items():
        for detector, found in figures.items():
            if detector != "against":
                console.print(f"{name}: {detector} against {figures['against']}: {found}")
    for name, found in result["goals"].items():
        console.print(
            f"goal {name}: {found['goal']}, measured {found['measured']}: {'met' if found['met'] else 'NOT met'}"
        )


def main() -> None:
    """Print a table, and one JSON object as the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", default=[])
    parser.add_argument("--detectors", nargs="+", default=[])
    parser.add_argument("--params", type=Path, default=ROOT / "params.yaml")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--threads", type=int, default=1, help="small batches gain nothing from a second")
    options = parser.parse_args()
    params, begin = load_params(options.params), time.perf_counter()
    use_threads(options.threads)
    detectors = options.detectors or [*params.detectors, *REFERENCES]
    results: dict[str, dict[str, Result]] = {}
    sets: dict[str, dict[str, Any]] = {}
    for data in data_sets(real_folder(), options.sets, params):
        started = time.perf_counter()
        results[data.name] = {name: measure(data, name, params, options.seeds) for name in detectors}
        machines = data.recording.rows.machines if data.pooled else None
        sets[data.name] = {name: found.to_json(machines) for name, found in results[data.name].items()}
        print(f"{data.name}, {time.perf_counter() - started:.0f} s: {json.dumps(sets[data.name])}", flush=True)
    tables = mean_of_tables(results, options.seeds[0])
    if tables:
        sets["adbench"] = tables
    tests = sign_flips(results)
    result = {"seeds": list(options.seeds), "seconds": round(time.perf_counter() - begin), "sign_flip": tests}
    result |= {"goals": goals(sets, tests, params.explaining_detector), "sets": sets}
    show(result)
    print(json.dumps(result))


if __name__ == "__main__":
    main()

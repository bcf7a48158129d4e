"""What a release is worth that was made some hours after a change of the fleet: on which rows, and from which weights.

A simulated fleet gets new firmware. A champion is built from what came before, challengers from what is known some
hours after the change; then all are judged on the same later rows, which no build has seen, by the truth of the
simulation. The seeds were not used in development (that used 1, 2 and 3).

- `champion`: the release as it was; it knows of no change.
- `after_only`: a challenger that is trained, described and calibrated by rows after the change alone.
- `epochs`: rows before the change train too, each relative to its own epoch (what stage `split` does).
- `epochs_fine_tuned`: the same, and the network starts from the champion's weights.

`auroc`: rows from a fault's onset on, within the horizon before its failure, against healthy rows; the mean over the
fleets. `caught` at the budget: the lowest threshold at which the healthy rows of the same period raise no more false
episodes than the budget allows (descriptive: it looks at what it judges, for all alike). `in_service`: failures caught
and false pages with the release's own thresholds and policy, and the rate in epochs that the release knows: machines
fail so often here that most of their later time follows a repair. Between two arms each failure counts once (exact
sign test).

Usage: python benchmarks/retrain.py [--seeds 401 402 403 404] [--hours 48] [--machines 16] [--before 30]
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import yaml
from rich.console import Console
from rich.table import Table
from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score

from pipeline.alerts import AlertPolicy, Timeline, typical_interval_us
from pipeline.judging.judged import Event, JudgedRows
from pipeline.judging.outcomes import budget_threshold, forgiven_rows, outcome_at
from pipeline.log_status import LogStatus
from pipeline.params import PolicyParams, SimulateParams, SplitParams, load_params
from pipeline.plant_log import SOUND, PlantLog
from pipeline.release import Release, load_release, release_id
from pipeline.rows import RowKeys, conditions_of
from pipeline.schema import (
    ENSEMBLE,
    MAINTENANCE_SCHEMA,
    MICROSECONDS_PER_DAY,
    MICROSECONDS_PER_HOUR,
    TRUTH_SCHEMA,
    BoolN,
    FloatN,
    IntN,
    codes_and_names,
    spectra_view,
    times_us,
)
from pipeline.simulate import simulate
from pipeline.store import day_files, read_json, read_table, read_with_context, write_table
from pipeline.train import run as train

SEEDS = (401, 402, 403, 404)
NETWORK = "autoencoder"
DETECTORS = (NETWORK, "pca", "energy_zscore", "squared_distance")
ARMS = ("champion", "after_only", "epochs", "epochs_fine_tuned")
BUDGET = 0.02  # false episodes per machine-day, as params.yaml has it
PURGE_HOURS = 6.0
STAGES = ("ingest", "validate", "split", "clean")
REST = ("calibrate", "evaluate", "release")


@dataclass(frozen=True)
class Later:
    """Rows after every build: machine codes, times, which are healthy, and the failures to be caught."""

    machine_N: npt.NDArray[np.int32]
    time_us_N: IntN
    kept_N: BoolN  # sound by the log, or in a failure's window, and not faulty otherwise
    healthy_N: BoolN
    events: list[Event]
    maintenance: pa.Table
    files: list[Path]


def fleet_of(seed: int, arguments: argparse.Namespace) -> SimulateParams:
    """A fleet whose firmware changes after `before` days; its machines fail often: few fleets must tell."""
    return SimulateParams(
        machines=arguments.machines,
        days=arguments.before + arguments.hours / 24 + arguments.later,
        interval_seconds=arguments.interval,
        failures=round(2.5 * arguments.machines),
        firmware_day=float(arguments.before),
        seed=seed,
    )


def settings_of(source: Path, *, changed_at: dt.datetime | None, base: str | None, threads: int) -> str:
    """The text of params.yaml: the plant's settings, and what a retraining replaces."""
    plain = yaml.safe_load((Path(__file__).parents[1] / "params.yaml").read_text())
    plain["source"]["path"] = str(source)
    plain["base_release"] = base
    plain["detectors"] = list(DETECTORS)
    plain["train"]["threads"] = threads
    plain["split"]["unseen_machine_share"] = 0.0
    plain["evaluate"]["chance_shifts"] = 20
    if changed_at is not None:
        plain["split"] |= {"changed_at": changed_at.isoformat(), "purge_hours": PURGE_HOURS}
    return yaml.safe_dump(plain)


def build(root: Path, params: str, *, prepared: Path | None = None) -> tuple[Path, float]:
    """Run the stages up to a release; its folder, and the seconds that training the network took.

    Args:
        root: a new folder.
        params: text of params.yaml.
        prepared: a build on the same rows, whose stages before training are taken over.
    """
    root.mkdir(parents=True)
    if prepared is not None:
        shutil.copytree(prepared / "data", root / "data")
        shutil.copytree(prepared / "metrics", root / "metrics")
    (root / "params.yaml").write_text(params)
    before, seconds = Path.cwd(), 0.0
    os.chdir(root)
    try:
        for stage in STAGES if prepared is None else ():
            import_module(f"pipeline.{stage}").main()
        import_module("pipeline.base_release").main()
        settings = load_params()
        for detector in DETECTORS if prepared is None else (NETWORK,):
            start = time.perf_counter()
            train(detector, settings, Path())
            seconds += (time.perf_counter() - start) * (detector == NETWORK)
        for stage in REST:
            import_module(f"pipeline.{stage}").main()
    finally:
        os.chdir(before)
    return root / "data/release", seconds


def only_after(plant: Path, folder: Path, change: dt.datetime) -> Path:
    """The same plant as if it had begun with the change: later day files, and what the log says of later times."""
    shutil.copytree(
        plant,
        folder,
        ignore=lambda _at, names: [n for n in names if n.endswith(".parquet") and n < f"{change:%Y-%m-%d}"],
    )
    log = read_table(plant / "maintenance.parquet", schema=MAINTENANCE_SCHEMA)
    moment = pa.scalar(change, pa.timestamp("us", "UTC"))
    write_table(folder / "maintenance.parquet", log.filter(pc.greater(log["end"], moment)))
    return folder


def later_rows(plant: Path, start: dt.datetime) -> Later:
    """Keys of the rows from `start` on, and what the truth says of them."""
    split = SplitParams(horizon_hours=168.0)
    begin = int(start.timestamp()) * 1_000_000
    files = [path for path in day_files(plant) if path.name >= f"{start:%Y-%m-%d}"]
    tables = [read_table(path, ["machine_id", "timestamp"]) for path in files]
    table = pa.concat_tables(tables).combine_chunks()
    machine_N, machines = codes_and_names(table["machine_id"])
    time_us_N = times_us(table["timestamp"])
    log = PlantLog.of(plant, split.horizon_hours)
    status_N, _ = log.statuses(
        machine_N, time_us_N, machines, np.ones(len(time_us_N), bool), int(time_us_N.max()), split
    )
    truth = read_table(plant / "truth.parquet", schema=TRUTH_SCHEMA)
    faulty_N, window_N = np.zeros((2, len(time_us_N)), bool)
    events = list[Event]()
    codes = {name: code for code, name in enumerate(machines)}
    horizon, newest = round(split.horizon_hours * MICROSECONDS_PER_HOUR), int(time_us_N.max())
    onset_K, end_K = (times_us(truth[name]).tolist() for name in ("onset", "end"))
    names, modes = (truth[name].to_pylist() for name in ("machine_id", "failure_mode"))
    for number, (name, onset, end, mode) in enumerate(zip(names, onset_K, end_K, modes, strict=True)):
        mine_N = machine_N == codes[name]
        faulty_N |= mine_N & (time_us_N >= onset) & (time_us_N <= end)
        first = max(onset, end - horizon, begin)
        if end > newest or end - first < MICROSECONDS_PER_DAY:  # it has not failed yet, or had no day to be heard
            continue
        events.append(Event(f"{number}", codes[name], first, end, max(onset, begin), mode))
        window_N |= mine_N & (time_us_N >= first) & (time_us_N < end)
    down_N = np.isin(status_N, [LogStatus.DOWN, LogStatus.REPAIR, LogStatus.OFF, LogStatus.RUN_IN])
    sound_N = np.isin(status_N, SOUND) | (status_N == LogStatus.HORIZON)  # a wrong entry makes no row faulty
    healthy_N = sound_N & ~faulty_N
    kept_N = healthy_N | (window_N & ~down_N)
    return Later(machine_N, time_us_N, kept_N, healthy_N, events, log.maintenance, files)


def scores_of(release: Release, later: Later) -> tuple[dict[str, FloatN], BoolN]:
    """Comparable scores (N,) of every detector and the ensemble on the later rows, as the service computes them.

    And which rows (N,) are of an epoch that the release knows: no repair has begun another since.
    """
    epochs, parts = release.epochs_with(later.maintenance), dict[str, list[FloatN]]()
    newest, known = int(release.manifest["newest_row_us"]), list[BoolN]()
    for path in later.files:
        table = read_with_context(path, ["machine_id", "timestamp", "spectrum"], release.condition_column)
        machine_N, machines = codes_and_names(table["machine_id"])
        condition_N, conditions = conditions_of(table, release.condition_column, path)
        epoch_N = epochs.of_rows(machine_N, times_us(table["timestamp"]), machines)
        latest_M = np.array([np.searchsorted(epochs.of_machine(name), newest, side="right") for name in machines])
        known.append(epoch_N <= latest_M[machine_N])
        keys = RowKeys(machines, machine_N, epoch_N, conditions, condition_N)
        spectra_NF = spectra_view(table["spectrum"], int(release.manifest["bins"]), path)
        baselines = next(iter(release.detectors.values())).baselines
        code_N = baselines.codes(keys)
        raw = {name: detector.score(spectra_NF, code_N) for name, detector in release.detectors.items()}
        for name, values in release.tails.comparable(raw, baselines.states(code_N), code_N).items():
            parts.setdefault(name, []).append(values)
    return {name: np.concatenate(values) for name, values in parts.items()}, np.concatenate(known)


def judged(release: Release, later: Later) -> dict[str, Any]:
    """Figures of every detector on the later rows, and of the release in service."""
    kept_N, (scores, known_N) = later.kept_N, scores_of(release, later)
    machine_N, time_us_N = later.machine_N[kept_N].astype(np.int32), later.time_us_N[kept_N]
    healthy_N = later.healthy_N[kept_N]
    interval_us = typical_interval_us(machine_N, time_us_N)
    policy = AlertPolicy.fitted_to(PolicyParams(), interval_us)  # one for all arms: each release has chosen its own
    line = Timeline.of(machine_N, time_us_N, policy)
    days = int(healthy_N.sum()) * interval_us / MICROSECONDS_PER_DAY
    rows = JudgedRows(machine_N, time_us_N, np.where(healthy_N, 0, 1).astype(np.int8), {})
    quiet_N = healthy_N & ~forgiven_rows(rows, later.events)
    quiet = Timeline.of(machine_N[quiet_N], time_us_N[quiet_N], policy)
    found: dict[str, Any] = {}
    for name, values in scores.items():
        value_N = values[kept_N]
        threshold = budget_threshold(value_N[quiet_N], quiet, BUDGET * days)
        outcome = outcome_at(value_N > threshold, line, later.events)
        found[name] = {
            "auroc": float(roc_auc_score(~healthy_N, value_N)),
            "caught": sorted(outcome.caught),
            "false_episodes": outcome.false_episodes,
        }
    served = Timeline.of(machine_N, time_us_N, release.policy)
    outcome = outcome_at(scores[ENSEMBLE][kept_N] > release.threshold("page"), served, later.events)
    of_known_N = known_N[kept_N][served.order]
    assert outcome.episodes is not None
    known = of_known_N[outcome.episodes.first] & (np.array(outcome.kinds, dtype=object) == "false")
    in_service = {
        "caught": sorted(outcome.caught),
        "false_pages": outcome.false_episodes,
        "false_pages_known_epochs": int(outcome.episodes.weight()[known].sum()),
        "known_days": int((of_known_N & healthy_N[served.order]).sum()) * interval_us / MICROSECONDS_PER_DAY,
    }
    return {"detectors": found, "in_service": in_service, "machine_days": days, "failures": len(later.events)}


def training_of(root: Path, seconds: float) -> dict[str, Any]:
    """What training the network took, and whom the new epoch's own rows describe."""
    history = read_json(root / "data/models" / NETWORK / "history.json")
    return {
        "rows": history["rows"],
        "epochs": len(history["epochs"]),
        "rows_seen": history["rows"] * len(history["epochs"]),
        "seconds": seconds,
        "own_share_newest_epochs": history["baselines"]["own_share_newest_epochs"],
        "tune_failures": read_json(root / "metrics/split.json")["failures"]["tune"],
        "judged_failures": read_json(root / "metrics/split.json")["failures"]["judged"],
    }


def run_fleet(seed: int, arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All arms on one fleet."""
    params, plant = fleet_of(seed, arguments), folder / "plant"
    change = dt.datetime.combine(params.start, dt.time(), dt.UTC) + dt.timedelta(days=arguments.before)
    begin = change + dt.timedelta(hours=arguments.hours)
    threads = arguments.threads
    simulate(params, plant, days=float(arguments.before))
    built = {"champion": build(folder / "champion", settings_of(plant, changed_at=None, base=None, threads=threads))}
    champion = release_id(built["champion"][0])
    os.environ["HEARKEN_HOME"] = str(folder / "home")
    shutil.copytree(built["champion"][0], folder / "home/releases" / champion)
    simulate(params, plant, from_day=float(arguments.before), days=arguments.hours / 24)
    after = only_after(plant, folder / "plant_after", change)
    for arm, source, base, prepared in (
        ("after_only", after, None, None),
        ("epochs", plant, None, None),
        ("epochs_fine_tuned", plant, champion, folder / "epochs"),
    ):
        settings = settings_of(source, changed_at=change, base=base, threads=threads)
        built[arm] = build(folder / arm, settings, prepared=prepared)
    simulate(params, plant, from_day=arguments.before + arguments.hours / 24, days=float(arguments.later))
    later = later_rows(plant, begin)
    return {
        arm: judged(load_release(release), later) | {"training": training_of(folder / arm, seconds)}
        for arm, (release, seconds) in built.items()
    }


def summary(fleets: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """Each arm's figures over the fleets, and pairs of arms failure by failure."""
    arms: dict[str, Any] = {}
    for arm in ARMS:
        results = [fleet[arm] for fleet in fleets.values()]
        days, failures = (sum(result[key] for result in results) for key in ("machine_days", "failures"))
        training = [result["training"] for result in results]
        served = {
            key: sum(result["in_service"][key] for result in results)
            for key in ("false_pages", "false_pages_known_epochs", "known_days")
        }
        own = [each["own_share_newest_epochs"] for each in training]
        arms[arm] = {
            "auroc": {
                name: round(float(np.mean([result["detectors"][name]["auroc"] for result in results])), 4)
                for name in (*DETECTORS, ENSEMBLE)
            },
            "caught_at_budget": {
                name: sum(len(result["detectors"][name]["caught"]) for result in results)
                for name in (*DETECTORS, ENSEMBLE)
            },
            "in_service": {
                "caught": sum(len(result["in_service"]["caught"]) for result in results),
                "false_pages_per_machine_day": round(served["false_pages"] / days, 4),
                "in_known_epochs": round(served["false_pages_known_epochs"] / served["known_days"], 4)
                if served["known_days"]
                else None,
                "known_machine_days": round(served["known_days"], 1),
            },
            "rows_seen": round(float(np.mean([each["rows_seen"] for each in training]))),
            "epochs": round(float(np.mean([each["epochs"] for each in training])), 1),
            "seconds": round(float(np.mean([each["seconds"] for each in training])), 1),
            "own_baselines": round(float(np.mean(own)), 3),
            "tune_failures": sum(each["tune_failures"] for each in training),
            "judged_failures": sum(each["judged_failures"] for each in training),
        }
    pairs = {
        f"{one} over {other}": {name: pair(fleets, one, other, name) for name in (NETWORK, ENSEMBLE)}
        for one, other in (("epochs", "after_only"), ("epochs_fine_tuned", "epochs"))
    }
    return {
        "seeds": list(fleets),
        "machine_days": round(days, 1),
        "failures": failures,
        "budget": BUDGET,
        "arms": arms,
        "pairs": pairs,
    }


def pair(fleets: Mapping[int, Mapping[str, Any]], one: str, other: str, detector: str) -> dict[str, Any]:
    """Failures that only one of two arms caught at the budget, an exact sign test, and the AUROC gained per fleet."""
    won = lost = 0
    for fleet in fleets.values():
        first, second = (set(fleet[arm]["detectors"][detector]["caught"]) for arm in (one, other))
        won, lost = won + len(first - second), lost + len(second - first)
    gained = [
        fleet[one]["detectors"][detector]["auroc"] - fleet[other]["detectors"][detector]["auroc"]
        for fleet in fleets.values()
    ]
    p_value = binomtest(won, won + lost).pvalue if won + lost else 1.0
    return {
        "only_first": won,
        "only_second": lost,
        "p": round(float(p_value), 4),
        "auroc_gained": [round(float(value), 4) for value in gained],
    }


def shown(found: Mapping[str, Any]) -> Table:
    """The arms as a table."""
    table = Table(
        title=f"{found['failures']} failures, {found['machine_days']:g} healthy machine-days after the builds"
    )
    for name in (
        "arm",
        "rows seen",
        "s",
        "own",
        f"AUROC {NETWORK}",
        "ensemble",
        f"caught {NETWORK}",
        "ensemble",
        "served",
        "false/day",
        "known",
    ):
        table.add_column(name, justify="left" if name == "arm" else "right")
    for arm, each in found["arms"].items():
        table.add_row(
            arm,
            f"{each['rows_seen']:,}",
            f"{each['seconds']:g}",
            f"{each['own_baselines']:.2f}",
            *(f"{each['auroc'][name]:.3f}" for name in (NETWORK, ENSEMBLE)),
            *(str(each["caught_at_budget"][name]) for name in (NETWORK, ENSEMBLE)),
            str(each["in_service"]["caught"]),
            f"{each['in_service']['false_pages_per_machine_day']:.3f}",
            "–" if each["in_service"]["in_known_epochs"] is None else f"{each['in_service']['in_known_epochs']:.3f}",
        )
    return table


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--hours", type=float, default=48.0, help="between the change and the builds")
    parser.add_argument("--machines", type=int, default=16)
    parser.add_argument("--before", type=int, default=30, help="days before the change")
    parser.add_argument("--later", type=int, default=20, help="days that judge")
    parser.add_argument("--interval", type=float, default=600.0, help="seconds between spectra")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    started, fleets = time.perf_counter(), {}
    for seed in arguments.seeds:
        with tempfile.TemporaryDirectory(prefix="hearken-retrain-") as folder:
            fleets[seed] = run_fleet(seed, arguments, Path(folder))
        print(f"seed {seed}: {time.perf_counter() - started:.0f} s so far", flush=True)
    found = summary(fleets) | {"hours": arguments.hours, "seconds": round(time.perf_counter() - started, 1)}
    Console(width=140).print(shown(found))
    print(json.dumps(found))


if __name__ == "__main__":
    main()

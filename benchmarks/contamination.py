"""How much contamination cleaning finds, what it costs, and what it wins: simulated fleets, then real recordings.

A simulated fleet is contaminated as plants are: the log has forgotten some of its failures, and in a second round their
repairs too, so that a fault lies amid an epoch that goes on, and in the baseline of later rows. Every other fault that
touches the training span is marked `off` from its onset, so that the share of contaminated rows is what it is called.
A twin without faults, made from the same seed, tells how far a fault lifts each row above its noise. Rows are judged by
principal components that were fitted on raw, on cleaned, and on truly healthy rows. The seeds were not used in
development (that used 1, 2, 3, 11, 12, 13 and 21). Real recordings: blocks of faulty windows are mixed into healthy
training rows; they are found in HEARKEN_REAL_DATA or ../shared/data, and left out where neither exists.

Usage: python benchmarks/contamination.py [--seeds 101 102 103 104 105] [--machines 30] [--days 60] [--method refine]
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from rich.console import Console
from rich.table import Table
from sklearn.metrics import roc_auc_score

from pipeline.clean import clean
from pipeline.cleaning.gate import baselines_of, quick_scores
from pipeline.maintenance import failures_of
from pipeline.params import BaselineParams, CleanParams, SimulateParams, SplitParams
from pipeline.rows import Rows, has_role, load_rows
from pipeline.schema import (
    KEY_FIELDS,
    MACHINE,
    MAINTENANCE_SCHEMA,
    MICROSECONDS_PER_HOUR,
    SPLIT_SCHEMA,
    TEXT,
    TRUTH_SCHEMA,
    BoolN,
    FleetSpec,
    FloatN,
    IntN,
    Role,
    codes_and_names,
    dictionary_column,
    load_fleet_spec,
    spectra_column,
    spectra_schema,
    spectra_view,
    time_column,
    times_us,
)
from pipeline.simulate import simulate
from pipeline.split import split
from pipeline.store import day_files, read_table, write_fleet_spec, write_table

SHARES = (0.0, 0.01, 0.05, 0.10)
AMID_SHARES = (0.05, 0.10)  # where the log has forgotten repairs too
REAL_SHARES = (0.02, 0.05, 0.10)
REAL_SETS = {"motor45kw": 5, "cooling_fan": 2, "femto_h": 12}  # rows of an episode
REAL_SEEDS = (201, 202, 203)
REAL_TRAIN = 0.6  # of the healthy windows
TRAIN_SHARE, HORIZON_HOURS = 0.5, 168.0
SAME_FAULT_DAYS = 5  # from a failure to an entry that is about it
ABOVE_NOISE = 3.0  # healthy standard deviations, in some band
WORTH_WINNING = 0.01  # lost by contamination: less tells nothing
FALSE_SHARE = 0.01  # of healthy rows, at which faulty ones are counted
Strings = npt.NDArray[np.str_]


@dataclass(frozen=True)
class SimulatedFleet:
    """A fleet on disk, and what is true of its N rows: the fault in each, and how far it stands above the noise."""

    folder: Path
    keys: pa.Table
    machine_N: npt.NDArray[np.int32]
    machines: list[str]
    time_us_N: IntN
    condition_N: npt.NDArray[np.int32]
    shift_NF: npt.NDArray[np.float32]  # log magnitude over that of the twin
    quiet_NF: npt.NDArray[np.float32]  # log magnitude of the twin
    mode_N: Strings
    log: list[dict[str, Any]]
    truth: list[dict[str, Any]]


def simulated(folder: Path, seed: int, machines: int, days: float) -> SimulatedFleet:
    """Simulate a fleet with two failures per machine, and its twin with none."""
    params = SimulateParams(
        machines=machines, days=days, interval_seconds=900, failures=2 * machines, mislabelled_share=0.0, seed=seed
    )
    simulate(params, folder)
    simulate(params.model_copy(update={"failures": 0}), folder / "twin")
    keys, spectra_NF = _read(folder, params.bins)
    _, twin_NF = _read(folder / "twin", params.bins)
    quiet_NF = np.log(np.maximum(twin_NF, 1e-9))
    machine_N, names = codes_and_names(keys["machine_id"])
    time_us_N = times_us(keys["timestamp"])
    truth = read_table(folder / "truth.parquet", schema=TRUTH_SCHEMA).to_pylist()
    mode_N = np.full(len(machine_N), "", "U32")
    for fault in truth:
        mode_N[_during(machine_N, names, time_us_N, fault["machine_id"], fault["onset"], fault["end"])] = fault[
            "failure_mode"
        ]
    return SimulatedFleet(
        folder=folder,
        keys=keys,
        machine_N=machine_N,
        machines=names,
        time_us_N=time_us_N,
        condition_N=codes_and_names(keys["condition"])[0],
        shift_NF=np.log(np.maximum(spectra_NF, 1e-9)) - quiet_NF,
        quiet_NF=quiet_NF,
        mode_N=mode_N,
        log=read_table(folder / "maintenance.parquet", schema=MAINTENANCE_SCHEMA).to_pylist(),
        truth=truth,
    )


def _read(folder: Path, bins: int) -> tuple[pa.Table, npt.NDArray[np.float32]]:
    keys, spectra = [], []
    for path in day_files(folder):
        table = read_table(path)
        spectra.append(spectra_view(table["spectrum"], bins))
        rows = pa.array(np.arange(table.num_rows, dtype=np.int32))
        file = dictionary_column(np.zeros(table.num_rows, np.int16), [path.name])
        keys.append(
            pa.table(
                [file, rows, table["machine_id"], table["timestamp"], table["condition"].cast(pa.string())],
                names=[*(field.name for field in KEY_FIELDS), "condition"],
            )
        )
    return pa.concat_tables(keys).unify_dictionaries(), np.concatenate(spectra)


def _during(
    machine_N: npt.NDArray[np.int32], names: list[str], time_us_N: IntN, machine: str, start: Any, end: Any
) -> BoolN:
    low, high = (round(moment.timestamp() * 1e6) for moment in (start, end))
    return np.asarray((machine_N == names.index(machine)) & (time_us_N >= low) & (time_us_N < high))


def contaminated_split(fleet: SimulatedFleet, share: float, seed: int, *, repairs_too: bool = False) -> pa.Table:
    """The split table of a log that has forgotten failures until `share` of the training rows is contaminated.

    With `repairs_too` it has forgotten their repairs as well: the fault lies amid an epoch that goes on.
    """
    tags = {"failure", "repair"} if repairs_too else {"failure"}
    time_N = fleet.time_us_N
    end = time_N.min() + TRAIN_SHARE * (time_N.max() - time_N.min())
    begun = [fault for fault in fleet.truth if fault["onset"].timestamp() * 1e6 < end]
    rows = [
        int(
            _during(fleet.machine_N, fleet.machines, time_N, fault["machine_id"], fault["onset"], fault["end"]).sum()
            if fault["end"].timestamp() * 1e6 < end
            else 10**9
        )
        for fault in begun
    ]
    training = 0.75 * float((time_N < end).sum())  # what quarantine of the other faults leaves
    log, forgotten = list(fleet.log), 0
    for index in np.random.default_rng([seed, 77]).permutation(len(begun)):
        fault = begun[index]
        if forgotten + rows[index] / 2 <= share * training:
            forgotten += rows[index]
            log = [entry for entry in log if not (entry["tag"] in tags and _belongs(entry, fault))]
        else:
            known = {"machine_id": fault["machine_id"], "start": fault["onset"], "end": fault["end"], "tag": "off"}
            log.append(known | {"failure_mode": None, "note": None})
    maintenance = pa.Table.from_pylist(log, schema=MAINTENANCE_SCHEMA)
    failures = failures_of(maintenance, None, horizon_hours=HORIZON_HOURS, tune_share=0.3, unseen_share=0.1)
    status = fleet.keys.append_column("status", pa.array(["ok"] * fleet.keys.num_rows).cast(TEXT))
    params = SplitParams(
        horizon_hours=HORIZON_HOURS,
        purge_hours=24,
        train_share=TRAIN_SHARE,
        calibration_share=0.15,
        unseen_machine_share=0.1,
        tune_failure_share=0.3,
    )
    return split(status, maintenance, failures, params).table


def _belongs(entry: dict[str, Any], fault: dict[str, Any]) -> bool:
    days = abs((entry["start"] - fault["end"]).total_seconds()) / 86_400
    return bool(entry["machine_id"] == fault["machine_id"] and days < SAME_FAULT_DAYS)


def above_noise(fleet: SimulatedFleet, table: pa.Table, looked_at_N: BoolN) -> FloatN:
    """How many healthy standard deviations the fault of each row (N,) looked at adds in the band where it adds most."""
    epoch_N = table["epoch"].to_numpy()
    key_N = (fleet.machine_N.astype(np.int64) * (int(epoch_N.max()) + 1) + epoch_N) * 64 + fleet.condition_N
    height_N = np.zeros(len(key_N))
    for key in np.unique(key_N[looked_at_N & (fleet.mode_N != "")]):
        mine = (key_N == key) & looked_at_N
        healthy = mine & (fleet.mode_N == "")
        if healthy.sum() >= 10:  # a repair may have changed the signal path for good: that is no fault
            added_NF = fleet.shift_NF[mine] - np.median(fleet.shift_NF[healthy], axis=0)
            height_N[mine] = np.abs(added_NF / fleet.quiet_NF[healthy].std(axis=0)).max(axis=1)
    return height_N


def judge_fleet(
    fleet: SimulatedFleet, share: float, seed: int, params: CleanParams, *, repairs_too: bool = False
) -> dict[str, Any]:
    """Clean one fleet at one share, and compare with the truth."""
    table = contaminated_split(fleet, share, seed, repairs_too=repairs_too)
    looked_at_N, test_N = has_role(table, Role.TRAIN, Role.VALIDATION), has_role(table, Role.TEST)
    spec = load_fleet_spec(fleet.folder / "fleet.yaml")
    begin = time.perf_counter()
    found = clean(fleet.folder, table, spec, params, seed, BaselineParams())
    seconds = time.perf_counter() - begin
    removed_N, ill_N = found.table["removed"].to_numpy(), fleet.mode_N != ""
    removed, mode, bad = removed_N[looked_at_N], fleet.mode_N[looked_at_N], ill_N[looked_at_N]
    high = bad & (above_noise(fleet, table, looked_at_N) >= ABOVE_NOISE)[looked_at_N]
    modes = {
        str(name): [int((part & (mode == name)).sum()) for part in (removed & bad, bad, removed & high, high)]
        for name in np.unique(mode[bad])
    }
    label_N = np.array(table["label"].to_pylist())
    positive_N = test_N & (label_N == "faulty") & ill_N
    judged_N = positive_N | (test_N & (label_N == "healthy") & ~ill_N)
    high_N = above_noise(fleet, table, test_N) >= ABOVE_NOISE
    rows = load_rows(fleet.folder, table, looked_at_N | judged_N, spec.bins, "condition")
    inner = np.flatnonzero(looked_at_N | judged_N)
    fits, healthy = has_role(table, Role.TRAIN)[inner], ~ill_N[inner]
    known = baselines_of(rows, fits & ~removed_N[inner] & healthy, log=True)
    judged = judged_N[inner] & known.is_own(known.codes(rows.keys))
    positive, loud = positive_N[inner][judged], high_N[inner][judged]
    judges = {
        name: _judged(_scores(rows, kept, judged), positive, loud)
        for name, kept in (("raw", fits), ("cleaned", fits & ~removed_N[inner]), ("truth", fits & healthy))
    }
    return _figures(removed, bad, high, judges) | {
        "gate_kept": float(found.metrics["gate"]["cleaning_kept"]),
        "contaminated_share": float(bad.mean()),
        "estimated_share": found.metrics["contaminated_share_estimate"],
        "seconds": seconds,
        "modes": modes,
    }


def _scores(rows: Rows, fits_N: BoolN, judged_N: BoolN) -> FloatN:
    return quick_scores(rows, fits_N, baselines_of(rows, fits_N, log=True), judged_N)


def _figures(removed: BoolN, bad: BoolN, high: BoolN | None, judges: dict[str, dict[str, Any]]) -> dict[str, Any]:
    figures: dict[str, Any] = {
        "recall": _mean(removed[bad]),
        "precision": _mean(bad[removed]),
        "clean_removed_share": _mean(removed[~bad]),
    }
    if high is not None:
        figures["recall_above_noise"] = _mean(removed[high])
    for figure in judges["raw"]:
        values = {name: judged[figure] for name, judged in judges.items()}
        figures |= {f"{figure}_{name}": value for name, value in values.items()}
        figures["won_back" if figure == "auroc" else f"{figure}_won_back"] = _won_back(**values)
    return figures


def _won_back(raw: float | None, cleaned: float | None, truth: float | None) -> float | None:
    """Share of what contamination costs that cleaning gives back; None where it costs too little to tell."""
    if raw is None or cleaned is None or truth is None or truth - raw < WORTH_WINNING:
        return None
    return (cleaned - raw) / (truth - raw)


def _mean(values: BoolN) -> float | None:
    return float(values.mean()) if len(values) else None


def _judged(score_N: FloatN, positive_N: BoolN, loud_N: BoolN | None = None) -> dict[str, float | None]:
    """AUROC of all positive rows, of the loud ones, and the share of these above all but FALSE_SHARE of the healthy."""
    figures = {"auroc": _auroc(score_N, positive_N)}
    if loud_N is not None:
        seen_N = ~positive_N | loud_N
        figures["auroc_above_noise"] = _auroc(score_N[seen_N], positive_N[seen_N])
        healthy = score_N[~positive_N]
        threshold = np.percentile(healthy, 100 * (1 - FALSE_SHARE)) if len(healthy) else np.inf
        figures["caught_above_noise"] = _mean(score_N[positive_N & loud_N] > threshold) if len(healthy) else None
    return figures


def _auroc(score_N: FloatN, positive_N: BoolN) -> float | None:
    return float(roc_auc_score(positive_N, score_N)) if positive_N.any() and not positive_N.all() else None


def real_folder() -> Path | None:
    """Where the recordings are."""
    named = Path(os.environ.get("HEARKEN_REAL_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
    return named if named.is_dir() else None


def judge_recording(path: Path, share: float, seed: int, params: CleanParams, episode_rows: int) -> dict[str, Any]:
    """Mix blocks of faulty windows into the healthy training windows of a recording, clean, and compare."""
    frame = read_table(path).to_pandas().sort_values(["machine_id", "timestamp"], kind="stable").reset_index(drop=True)
    bins = [name for name in frame.columns if name.startswith("bin_")]
    rng = np.random.default_rng([seed, 5])
    label_N, machine_N = frame["label"].to_numpy(), frame["machine_id"].to_numpy().astype(str)
    group_N = np.char.add(np.char.add(machine_N, "/"), frame["condition"].to_numpy().astype(str))
    trains_N, mixed_N = np.zeros(len(frame), bool), np.zeros(len(frame), bool)
    for group in np.unique(group_N):
        healthy = np.flatnonzero((group_N == group) & (label_N == 0))
        trains_N[healthy[: int(REAL_TRAIN * len(healthy))]] = True
    faulty = _blocks(np.flatnonzero(label_N == 1), group_N, episode_rows)
    wanted = share / (1 - share) * trains_N.sum()
    for index in rng.permutation(len(faulty)):
        if mixed_N.sum() + len(faulty[index]) / 2 <= wanted:
            mixed_N[faulty[index]] = True
    order = _mixed_order(trains_N, mixed_N, group_N, episode_rows, rng)
    judged = np.flatnonzero(~trains_N & ~mixed_N & (label_N >= 0))
    index = np.concatenate([order, judged])
    by_machine = np.argsort(machine_N[index], kind="stable")
    index = index[by_machine]
    fits = (trains_N | mixed_N)[index]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        table = _recording(folder, frame.iloc[index], bins, fits)
        spec = FleetSpec(bins=len(bins), time="relative")
        settings = params.model_copy(update={"episode_hours": episode_rows / 3600, "max_removed_share": 0.5})
        found = clean(folder, table, spec, settings, seed, BaselineParams())
        rows = load_rows(folder, table, np.ones(table.num_rows, bool), spec.bins, "condition")
    removed, bad = found.table["removed"].to_numpy(), mixed_N[index]
    judges = {
        kind: _judged(_scores(rows, kept, ~fits), label_N[index][~fits] == 1)
        for kind, kept in (("raw", fits), ("cleaned", fits & ~removed), ("truth", fits & ~bad))
    }
    return _figures(removed[fits], bad[fits], None, judges) | {"contaminated_share": float(bad[fits].mean())}


def _blocks(index: IntN, group_N: npt.NDArray[Any], rows: int) -> list[IntN]:
    """Whole blocks of neighbouring rows of one group."""
    found = []
    for group in np.unique(group_N[index]):
        mine = index[group_N[index] == group]
        found += [mine[first : first + rows] for first in range(0, len(mine) - rows + 1, rows)]
    return found


def _mixed_order(
    trains_N: BoolN, mixed_N: BoolN, group_N: npt.NDArray[Any], rows: int, rng: np.random.Generator
) -> IntN:
    """Training rows in time, with blocks of faulty ones at random places among those of their group."""
    order = list[IntN]()
    for group in np.unique(group_N):
        healthy = _blocks_with_rest(np.flatnonzero(trains_N & (group_N == group)), rows)
        for block in _blocks_with_rest(np.flatnonzero(mixed_N & (group_N == group)), rows):
            healthy.insert(int(rng.integers(len(healthy) + 1)), block)
        order += healthy
    return np.concatenate(order)


def _blocks_with_rest(index: IntN, rows: int) -> list[IntN]:
    return [index[first : first + rows] for first in range(0, len(index), rows)]


def _recording(folder: Path, frame: Any, bins: list[str], fits_N: BoolN) -> pa.Table:
    """Write a data set of one file, a row a second for each machine, and the split table that belongs to it."""
    names = sorted(frame["machine_id"].unique())
    machine_N = np.searchsorted(names, frame["machine_id"].to_numpy().astype(str))
    first_N = np.searchsorted(machine_N, machine_N)
    time_N = (np.arange(len(frame)) - first_N) * (MICROSECONDS_PER_HOUR // 3600)
    machines, times = dictionary_column(machine_N, names, MACHINE), time_column(time_N)
    condition = pa.array(frame["condition"].astype(str)).dictionary_encode().cast(TEXT)
    spectra = spectra_column(frame[bins].to_numpy(np.float32))
    schema = spectra_schema(len(bins), [pa.field("condition", TEXT)])
    path = "1970-01-01.parquet"
    write_table(folder / "spectra" / path, pa.Table.from_arrays([machines, times, spectra, condition], schema=schema))
    write_fleet_spec(folder / "fleet.yaml", FleetSpec(bins=len(bins), time="relative"))
    zeros = np.zeros(len(frame), np.int16)
    role_N = np.where(fits_N, 0, 1).astype(np.int16)
    columns = [
        dictionary_column(zeros, [path]),
        pa.array(np.arange(len(frame), dtype=np.int32)),
        machines,
        times,
        dictionary_column(zeros, ["healthy"]),
        pa.array(np.zeros(len(frame), np.int32)),
        dictionary_column(role_N, [Role.TRAIN.value, Role.TEST.value]),
        dictionary_column(role_N, ["healthy", "unknown"]),
        dictionary_column(zeros - 1, ["none"]),
    ]
    return pa.Table.from_arrays(columns, schema=SPLIT_SCHEMA)


def averaged(runs: list[dict[str, Any]]) -> dict[str, float | None]:
    """Mean of each figure over the runs that have it."""
    found: dict[str, float | None] = {}
    for key in runs[0]:
        values = [run[key] for run in runs if run[key] is not None and key != "modes"]
        if key != "modes":
            found[key] = round(float(np.mean(values)), 5) if values else None
    return found


def main() -> None:
    """Print tables, and one JSON object as the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[101, 102, 103, 104, 105])
    parser.add_argument("--machines", type=int, default=30)
    parser.add_argument("--days", type=float, default=60)
    parser.add_argument("--method", choices=("refine", "trimmed", "none"), default="refine")
    parser.add_argument("--model", choices=("pca", "autoencoder"), default="pca")
    parser.add_argument("--workers", type=int, default=2, help="processes; seconds are told as they share the machine")
    options = parser.parse_args()
    params = CleanParams(method=options.method, model=options.model, max_removed_share=0.5)
    folder = real_folder()
    with ProcessPoolExecutor(options.workers) as pool:
        fleets = [pool.submit(judge_seed, seed, options.machines, options.days, params) for seed in options.seeds]
        recordings = {
            (name, share): [
                pool.submit(judge_recording, folder / f"{name}.parquet", share, seed, params, rows)
                for seed in REAL_SEEDS
            ]
            for name, rows in (REAL_SETS if folder else {}).items()
            for share in REAL_SHARES
        }
    found = [fleet.result() for fleet in fleets]
    runs = {_percent(share): [each[False, share] for each in found] for share in SHARES}
    amid = {_percent(share): [each[True, share] for each in found] for share in AMID_SHARES}
    result: dict[str, Any] = {"method": options.method, "model": options.model, "seeds": options.seeds}
    result |= {"machines": options.machines, "days": options.days}
    result["shares"] = {share: averaged(each) for share, each in runs.items()}
    result["shares_repairs_forgotten"] = {share: averaged(each) for share, each in amid.items()}
    result["modes"] = _modes(runs)
    result["recordings"] = {
        name: {
            _percent(share): averaged([run.result() for run in recordings[name, share]])
            for share in REAL_SHARES
            if (name, share) in recordings
        }
        for name in REAL_SETS
        if folder
    }
    _show(result)
    print(json.dumps(result))


def judge_seed(seed: int, machines: int, days: float, params: CleanParams) -> dict[tuple[bool, float], dict[str, Any]]:
    """Simulate one fleet; figures by whether repairs are forgotten too, and share."""
    with tempfile.TemporaryDirectory() as name:
        fleet = simulated(Path(name), seed, machines, days)
        rounds = [(False, share) for share in SHARES] + [(True, share) for share in AMID_SHARES]
        return {
            (repairs_too, share): judge_fleet(fleet, share, seed, params, repairs_too=repairs_too)
            for repairs_too, share in rounds
        }


def _percent(share: float) -> str:
    return f"{100 * share:g}"


def _modes(runs: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Recall by fault mode over all seeds and shares: rows found of rows there are."""
    total: dict[str, npt.NDArray[np.int64]] = {}
    for run in (run for found in runs.values() for run in found):
        for mode, counted in run["modes"].items():
            total[mode] = total.get(mode, np.zeros(4, np.int64)) + counted
    return {
        mode: {
            "rows": int(all_),
            "recall": round(float(found / all_), 4),
            "rows_above_noise": int(above),
            "recall_above_noise": round(float(high / above), 4) if above else None,
        }
        for mode, (found, all_, high, above) in sorted(total.items())
    }


def _show(result: dict[str, Any]) -> None:
    console = Console(width=120)
    blocks = {
        "simulated, by share of contaminated rows in %": result["shares"],
        "where the log has forgotten the repairs too": result["shares_repairs_forgotten"],
        "fault modes": result["modes"],
    }
    for name, found in result.get("recordings", {}).items():
        blocks[f"{name}, by share in %"] = found
    for title, block in blocks.items():
        names = list(next(iter(block.values()))) if block else []
        table = Table(title=title)
        for heading in ("", *block):
            table.add_column(heading, justify="right")
        for key in names:
            table.add_row(key, *("—" if row[key] is None else f"{row[key]:.4g}" for row in block.values()))
        console.print(table)


if __name__ == "__main__":
    main()

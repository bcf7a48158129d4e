"""What a replay of other alert settings reads: the evaluation scores of a build, or a score log of a release.

Shape legend: N rows, K failures.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.alerts import AlertPolicy
from pipeline.errors import ContractError, ReleaseError, UserError
from pipeline.evaluate import events_of, judged_labels, label_codes, machines_never_seen, read_truth
from pipeline.fact_stream import Names
from pipeline.judging.judged import FAULTY, HEALTHY, UNKNOWN, Event, JudgedRows
from pipeline.log_status import LogStatus
from pipeline.moments import to_us
from pipeline.params import Params, SplitParams
from pipeline.pareto import rows_needed
from pipeline.plant_log import SOUND, PlantLog
from pipeline.release import Release
from pipeline.replay import Recorder, Recording
from pipeline.rows import ONE_CONDITION, Rows
from pipeline.schema import BoolN, FloatN, codes_and_names, load_fleet_spec, times_us
from pipeline.score_log import log_days, over_days, releases_of
from pipeline.score_log.files import open_log_file
from pipeline.score_log.read import read_groups
from pipeline.store import column_names, read_json, read_table
from pipeline.tails import TailTable
from pipeline.what_if import (
    Setting,
    Wanted,
    beyond_the_rows,
    limits_of,
    present_setting,
    settings_of,
    tail_of,
    what_if,
)

SCORE, TAIL = "score_", "tail_"


def replay_evaluation(
    folder: Path, wanted: Wanted, params: Params, *, detector: str | None = None, budget: float | None = None
) -> dict[str, Any]:
    """`what_if` of the evaluation scores of a build: test rows of machines that trained, as the evaluation judged them.

    Percentiles become thresholds by the build's calibration scores, and by their tail where those are too few.

    Args:
        folder: `data/evaluation` of a build; calibration, status and metrics stand beside it.
        wanted: settings to try.
        params: sections evaluate and seed.
        detector: whose scores; None: the release's.
        budget: false pages a day for the fleet; None: as params say, for as many machines.

    Raises:
        ContractError: no evaluation there, or a file that is damaged.
        UserError: an unknown detector, or settings out of range.
    """
    root = (folder.resolve() / "../..").resolve()
    scores, calibrated = folder / "scores.parquet", root / "data/calibration"
    if not scores.is_file():
        expected = "data/evaluation of a build (hearken build)"
        raise ContractError.of("evaluation", got="no scores.parquet", expected=expected, where=folder)
    detector = detector or str(_object(root / "metrics/evaluation.json")["release_detector"])
    calibration = _object(calibrated / "calibration.json")
    known = [name for name in _names_after(SCORE, column_names(scores)) if name in calibration["detectors"]]
    _refuse_unknown(detector, known)
    figures = calibration["detectors"][detector]
    present = present_setting(figures, AlertPolicy.from_json(calibration["policy"]))
    column = f"{SCORE}{detector}"
    healthy_scores = read_table(calibrated / "scores.parquet", [column])[column].to_numpy()
    percentiles = (*wanted.percentiles, present.percentile)
    limits, notes = limits_of(healthy_scores, percentiles, tail_of(figures), (present.percentile, present.limit))
    table = read_table(scores, ["machine_id", "timestamp", "label", column])
    rows = _rows_of(table)
    truth = read_truth(root / "data/raw", params.evaluate.use_truth)
    label_N, keep_N = judged_labels(rows, label_codes(rows.column("label")), truth)
    keep_N &= ~np.isin(rows.column("machine_id"), list(_never_seen(root / "data/status/split.parquet")))
    level_N = table[column].to_numpy()
    test = JudgedRows(rows.machine[keep_N], rows.time_us[keep_N], label_N[keep_N], {detector: level_N[keep_N]})
    events = _judged_events(read_json(folder / "events.json"), rows.machines)
    fleet = root / "data/raw/fleet.yaml"
    calendar = not fleet.is_file() or load_fleet_spec(fleet).time == "absolute"
    lowest = min(present.low_limit, *limits.values())
    recording = Recording.of_rows(test, detector, lowest, events, rows.machines, calendar)
    return _replayed(recording, present, wanted, limits, params, detector, budget, notes)


def replay_score_log(
    folder: Path,
    release: Release,
    wanted: Wanted,
    params: Params,
    *,
    detector: str | None = None,
    budget: float | None = None,
    data_set: Path | None = None,
) -> dict[str, Any]:
    """`what_if` of a score log in any of its layouts, a day at a time: a percentile is a bound on the tail probability
    there, so chosen that a row exceeds it where its score exceeds the threshold (`level_limit`).

    With a data set, its maintenance log says which rows count, as stage `split` has it, and which failures there were;
    those that tuned the release are left out.

    Args:
        folder: of the score log.
        release: that wrote it.
        wanted: settings to try.
        params: sections evaluate and seed.
        detector: whose tail probabilities, or `ensemble`; None: the release's.
        budget: false pages a day for the fleet; None: as params say, for as many machines.
        data_set: whose maintenance log to use.

    Raises:
        ContractError: an empty log, or a file that is damaged.
        ReleaseError: scores of another release.
        UserError: an unknown detector, or settings out of range.
    """
    known = _detectors_in(folder)
    if not known:
        got, expected = "no file with tail probabilities", "Parquet files as the service or `hearken score` writes them"
        raise ContractError.of("score log", got=got, expected=expected, where=folder)
    others = releases_of(folder) - {release.id}
    if others:
        got = ", ".join(sorted(others))
        raise ReleaseError(f"score log: got scores of release {got}, expected {release.id}, in {folder}.")
    detector = detector or release.detector
    _refuse_unknown(detector, known)
    present = _present_in_log(release, detector)
    table = _table_of(release, detector)
    limits = {one: level_limit(one, table) for one in (*wanted.percentiles, present.percentile)}
    split = _split_params(release)
    plant = None if data_set is None else PlantLog.of(data_set, split.horizon_hours)
    truth = None if data_set is None else read_truth(data_set, params.evaluate.use_truth)
    lowest = min(present.low_limit, *limits.values())
    recording, notes = _recorded(folder, release, detector, lowest, plant, truth, split)
    notes += [] if table is None else beyond_the_rows(limits, table.rows, table.tail)
    return _replayed(recording, present, wanted, limits, params, detector, budget, notes)


def _detectors_in(log: Path) -> list[str]:
    """Whose tail probabilities the oldest file of a score log has; none where there is no such file."""

    def read(files: list[Path]) -> list[str]:
        for path in files[:1]:
            with open_log_file(path) as file:
                return _names_after(TAIL, file.schema_arrow.names)
        return []

    for day in log_days(log):
        (names,) = over_days(log, [day], read)
        if names:
            return names
    return []


def _recorded(
    log: Path,
    release: Release,
    detector: str,
    lowest: float,
    plant: PlantLog | None,
    truth: pa.Table | None,
    split: SplitParams,
) -> tuple[Recording, list[str]]:
    """The rows of a score log, and notes."""
    names = Names()
    judged_K = np.zeros(0, bool) if plant is None else _judging(plant, release)
    events: list[Event] = []
    if plant is not None:
        failed = plant.failures["machine_id"].to_pylist()
        names.codes(np.arange(len(failed)), failed)  # their codes are known before their rows come
        events = _events_of_log(plant.failures.filter(pa.array(judged_K)), names, split, truth)
    recorder = Recorder(lowest, events, log=plant is not None)
    in_horizon_K, older, newest = np.zeros(len(judged_K), np.int64), 0, int(release.manifest["newest_row_us"])
    for day in log_days(log):
        machine, time_us, level = _day_of_log(log, day, detector, names)
        label, keep = np.full(len(machine), UNKNOWN, np.int8), np.ones(len(machine), bool)
        if plant is not None and len(machine):
            scored = np.isfinite(level)
            status, owner = plant.statuses(machine, time_us, names.names, scored, int(time_us.max()), split)
            mine = (status == LogStatus.HORIZON) & np.r_[judged_K, False][owner]
            in_horizon_K += np.bincount(owner[mine], minlength=len(judged_K))
            keep = np.isin(status, SOUND) | mine
            rows = _keyed(machine, time_us, names.names)
            label, told = judged_labels(rows, np.where(mine, FAULTY, HEALTHY).astype(np.int8), truth)
            keep &= told
        older += int((time_us[keep] <= newest).sum())
        recorder.add(machine[keep], time_us[keep], level[keep], label[keep])
    recording = recorder.finish(names.names, release.fleet.time == "absolute")
    notes = []
    if older:
        notes.append(f"{older:,} of {recording.rows:,} rows are as old as those that made or judged the release.")
    if plant is None:
        return recording, notes
    ids = plant.failures["failure_id"].to_pylist()
    with_rows = {name for name, rows in zip(ids, in_horizon_K.tolist(), strict=True) if rows}
    chosen_K = np.array([event.failure_id in with_rows for event in events], bool)
    tuned = int((~judged_K).sum())
    if tuned:
        notes.append(f"Left out, with the rows before them: {tuned} failures that are there to tune.")
    return recording.judging(chosen_K), notes


def _judging(plant: PlantLog, release: Release) -> BoolN:
    """Which failures (K,) judge: all but those that tuned the release."""
    tuned_K = plant.tunes(()) & (plant.times_us() <= int(release.manifest["newest_row_us"]))
    return np.asarray(~tuned_K)


def _events_of_log(failures: pa.Table, names: Names, split: SplitParams, truth: pa.Table | None) -> list[Event]:
    """The failures as events, from the true onset on where a simulation knows it."""
    codes = np.zeros(failures.num_rows, np.int32)
    rows = _keyed(codes, np.zeros(failures.num_rows, np.int64), names.names, failures.select(["failure_id"]))
    return events_of(failures, rows, split.horizon_hours, truth)[0]


def _day_of_log(log: Path, day: str, detector: str, names: Names) -> tuple[np.ndarray, np.ndarray, FloatN]:
    """Machine codes, times and levels (the negative tail probability; NaN without a score) of one day's rows."""
    column = f"{TAIL}{detector}"

    def read(files: list[Path]) -> list[pa.Table]:
        return [_columns_of(path, ["machine_id", "timestamp", column]) for path in files]

    machines, times, levels = [np.empty(0, np.int32)], [np.empty(0, np.int64)], [np.empty(0)]
    for table in over_days(log, [day], read)[0]:
        machines.append(names.codes(*codes_and_names(table["machine_id"])))
        times.append(times_us(table["timestamp"]))
        levels.append(-table[column].to_numpy(zero_copy_only=False))
    return np.concatenate(machines), np.concatenate(times), np.concatenate(levels)


def _columns_of(path: Path, columns: Sequence[str]) -> pa.Table:
    with open_log_file(path) as file:
        missing = [name for name in columns if name not in file.schema_arrow.names]
        if missing:
            got = f"no column {', '.join(missing)}"
            raise ContractError.of("score log", got=got, expected=", ".join(columns), where=path)
        return read_groups(file, range(file.metadata.num_row_groups), columns, path)


def _present_in_log(release: Release, detector: str) -> Setting:
    calibrated = release.calibration["detectors"]
    tiers = calibrated.get(detector, calibrated[release.detector])
    low, page = (float(tiers[tier]["percentile"]) for tier in ("low", "page"))
    limit, low_limit = (level_limit(percentile, _table_of(release, detector)) for percentile in (page, low))
    return Setting(page, limit, low_limit, release.policy, present=True)


def _table_of(release: Release, detector: str) -> TailTable | None:
    """The tail table of a score; None for the ensemble of a release that has only one detector."""
    return release.tails.table(detector) if detector in release.tails.names else None


def level_limit(percentile: float, table: TailTable | None) -> float:
    """The level (minus the tail probability) above which a row exceeds a percentile; as its threshold would have it.

    Where calibration rows are counted, the threshold leaves a number of them above it, and a row exceeds it where no
    more than those score at least as high: half a row keeps the two apart. Elsewhere the tail probability lies below
    1 - q.

    >>> level_limit(99.9, None), level_limit(90.0, TailTable.of(np.arange(100.0)))
    (-0.001, -0.10396039603960396)
    """
    if table is None or (table.rows < rows_needed(percentile) and table.tail is not None):
        return -round(1 - percentile / 100, 12)
    above = table.rows - 1 - int(np.ceil((table.rows - 1) * (percentile / 100)))
    return -(above + 1.5) / (table.rows + 1)


def _split_params(release: Release) -> SplitParams:
    return SplitParams.model_validate(release.manifest["params"]["split"])


def _replayed(
    recording: Recording,
    present: Setting,
    wanted: Wanted,
    limits: dict[float, float],
    params: Params,
    detector: str,
    budget: float | None,
    notes: list[str],
) -> dict[str, Any]:
    settings, widened = settings_of(present, wanted, limits, recording.interval_us)
    if budget is None:
        budget = params.evaluate.false_episodes_per_machine_day * recording.machine_count
    shifts, seed = params.evaluate.chance_shifts, params.seed
    said = [*notes, *widened]
    return what_if(recording, settings, detector=detector, budget=budget, shifts=shifts, seed=seed, notes=said)


def _judged_events(listed: Sequence[dict[str, Any]], machines: Sequence[str]) -> list[Event]:
    """The failures of events.json."""
    codes = {machine: code for code, machine in enumerate(machines)}
    return [
        Event(
            one["failure_id"],
            codes[one["machine_id"]],
            to_us(one["window_start"]),
            to_us(one["time"]),
            to_us(one["window_start"]),
            one["failure_mode"],
        )
        for one in listed
        if one["machine_id"] in codes
    ]


def _never_seen(path: Path) -> set[str]:
    """Machines that no model saw; where no split says, none."""
    return machines_never_seen(read_table(path, ["machine_id", "role"])) if path.is_file() else set()


def _rows_of(table: pa.Table) -> Rows:
    machine, machines = codes_and_names(table["machine_id"])
    return _keyed(machine, times_us(table["timestamp"]), machines, table)


def _keyed(
    machine_N: np.ndarray, time_us_N: np.ndarray, machines: Sequence[str], status: pa.Table | None = None
) -> Rows:
    """Rows without spectra."""
    zeros = np.zeros(len(machine_N), np.int32)
    table = pa.table({}) if status is None else status
    spectra = np.empty((len(machine_N), 0), np.float32)
    return Rows(spectra, machine_N, machines, zeros, zeros, ONE_CONDITION, time_us_N, table)


def _names_after(prefix: str, columns: Sequence[str]) -> list[str]:
    return [name.removeprefix(prefix) for name in columns if name.startswith(prefix)]


def _refuse_unknown(detector: str, known: Sequence[str]) -> None:
    if detector not in known:
        raise UserError(f"--detector: got {detector!r}, expected one of {', '.join(known)}.")


def _object(path: Path) -> dict[str, Any]:
    value = read_json(path)
    if not isinstance(value, dict):
        raise ContractError.of("JSON", got=f"a {type(value).__name__}", expected="an object", where=path)
    return value

"""What a plant does first: train on the healthy past of recorded data, calibrate, and judge what comes after.

Labels say what is healthy (0), faulty (1) and unknown (-1); queries say which rows train and which are judged. A run of
faulty rows of one machine is one failure; its last row is the moment of failure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
from sklearn.metrics import roc_auc_score

from pipeline.alerts import Timeline
from pipeline.calibrate import Calibration, calibrate
from pipeline.detectors import Detector
from pipeline.detectors.base import write_history
from pipeline.errors import ContractError, UserError
from pipeline.evaluate import Pictures, pictures, write_evaluation
from pipeline.evidence import history_mask
from pipeline.judge import judge
from pipeline.judging.judged import FAULTY, HEALTHY, UNKNOWN, Event, JudgedRows, Judgement
from pipeline.judging.outcomes import budget_threshold
from pipeline.landing.frame import WideFrame, load_frame
from pipeline.layout import SourceLayout
from pipeline.measure import Scored, score_rows, scores_table
from pipeline.params import DETECTOR_NAMES, WINDOW_DETECTORS, ChoiceParams, Params
from pipeline.report import ReportData, render_report
from pipeline.rows import Rows, conditions_of
from pipeline.schema import (
    ENSEMBLE,
    TEXT,
    BoolN,
    FleetSpec,
    Label,
    Role,
    dictionary_column,
    time_column,
)
from pipeline.score import usable_rows
from pipeline.store import atomic_folder, write_json, write_text
from pipeline.train import train_detector, use_threads

TRAIN_PART = 0.6  # of the training rows of a machine, in time; the rest calibrates
GAP_PART = 0.02  # of them, between the two: neighbouring windows are alike
VALIDATION_EVERY = 5  # every fifth block of the training rows
VALIDATION_BLOCKS = 20
DEFAULT_TRAIN_PART = 0.4  # of each machine's span, where no query says what trains


@dataclass(frozen=True)
class BacktestRequest:
    """What is asked of a backtest; queries are pandas expressions over every column that is no bin.

    `time` is `relative` where dates are synthetic but spacing is real: lead times stand, rates per day are null.
    """

    source: Path
    label_column: str | None = None  # None: `label`
    train_query: str | None = None
    test_query: str | None = None
    baseline_query: str | None = None
    timezone: str | None = None
    time: str = "absolute"
    detectors: tuple[str, ...] = ()
    across_machines: bool = False
    layout: SourceLayout | None = None  # how the files hold their data; None: as fleet.yaml says
    unit: str | None = None
    kind: Literal["spectrum", "features"] | None = None


@dataclass(frozen=True)
class LabelledRecording:
    """A source with its labels, rows sorted by machine and time."""

    rows: Rows
    frame: pd.DataFrame
    label: np.ndarray
    fleet: FleetSpec
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Fold:
    """One training with what was judged by it."""

    detectors: Mapping[str, Detector]
    histories: dict[str, dict[str, Any]]
    calibration: Calibration
    test: Scored
    label: np.ndarray
    counts: dict[str, int] = field(default_factory=dict)


def run_backtest(request: BacktestRequest, params: Params, out: Path, say: Any = print) -> dict[str, Any]:
    """Train, calibrate and judge; write `metrics.json`, `report.html` and what the report draws into `out`.

    Returns:
        The figures, as in metrics.json.

    Raises:
        ContractError: data that breaks the contract, no healthy rows, no test rows.
        UserError: a query or an option that cannot be understood.
    """
    chosen = request.detectors or params.detectors
    unknown = [name for name in chosen if name not in DETECTOR_NAMES]
    if unknown:
        raise UserError(f"--detectors: got {', '.join(unknown)}, expected some of {', '.join(DETECTOR_NAMES)}.")
    single = [name for name in chosen if name not in WINDOW_DETECTORS]
    if not single:
        raise UserError(f"--detectors: got {', '.join(chosen)}, expected one that scores single rows beside it.")
    there = (*single, ENSEMBLE) if len(single) > 1 else single
    release_detector = params.release.detector if params.release.detector in there else single[0]
    params = params.model_copy(
        update={"detectors": tuple(chosen), "release": params.release.model_copy(update={"detector": release_detector})}
    )
    check_output(out, request.source)
    use_threads(params.train.threads)
    recording = read_recording(request, params.train.baseline.conditions_from)
    if request.across_machines:
        judgement, fold = across_machines(recording, request, params, say)
    else:
        role = roles(recording, request)
        fold = run_fold(recording, role, params, say)
        judgement = judge_fold(recording, fold, params, request.time)
    judgement.figures["dataset"] |= {
        "source": request.source.name,
        "rows": len(recording.rows),
        "machines": len(recording.rows.machines),
        "bins": recording.fleet.bins,
        "roles": fold.counts,
    }
    judgement.figures["notes"] += [*recording.warnings, *fold.calibration.notes, *order_notes(recording, fold, request)]
    write_backtest(out, recording, judgement, fold, params)
    return judgement.figures


def check_output(out: Path, source: Path) -> None:
    """Refuse a folder that holds anything but an earlier backtest: it would be replaced.

    Raises:
        UserError: a file, a folder of something else, or one with the source inside.
    """
    earlier = (out / "metrics.json").is_file() and (out / "report.html").is_file()
    if (out.exists() and not out.is_dir()) or (out.is_dir() and any(out.iterdir()) and not earlier):
        raise UserError(f"--out: got {out}, which holds other things; expected a new folder or an earlier backtest.")
    if out.resolve() in (source.resolve(), *source.resolve().parents) and out.exists():
        raise UserError(f"--out: got {out}, which holds the source {source}; expected another folder.")


def read_recording(request: BacktestRequest, condition_column: str | None = None) -> LabelledRecording:
    """Read the source whole and sort its rows by machine and time; where no column names conditions there is one.

    Raises:
        ContractError: no label column, labels other than 0, 1, -1, bins that are no finite numbers.
    """
    frame: WideFrame = load_frame(
        request.source, request.timezone, layout=request.layout, unit=request.unit, kind=request.kind
    )
    column = request.label_column or "label"
    if column not in frame.context.columns:
        got = f"columns {', '.join(map(str, frame.context.columns))}"
        raise ContractError.of("label column", got=got, expected=f"{column} (--label-column)", where=request.source)
    context = frame.context.assign(machine_id=frame.context["machine_id"].astype(str))
    order = np.lexsort((context["timestamp"].to_numpy(), context["machine_id"].to_numpy(dtype=str)))
    context = context.iloc[order].reset_index(drop=True)
    spectra = frame.spectra_NF[order]
    label = _labels(context[column], request.source)
    usable = usable_rows(spectra, frame.kind)
    warnings = list(frame.warnings)
    if not usable.all():
        warnings.append(f"{int((~usable).sum())} rows hold NaN, infinite, negative or enormous bins and are left out.")
        context, spectra, label = context[usable].reset_index(drop=True), spectra[usable], label[usable]
    machines, codes = np.unique(context["machine_id"].to_numpy(dtype=str), return_inverse=True)
    # whatever the time column's unit is: microseconds since 1970
    time_us = context["timestamp"].dt.tz_localize(None).to_numpy().astype("datetime64[us]").astype(np.int64)
    fleet = frame.fleet.model_copy(update={"time": "relative"} if request.time == "relative" else {})
    codes = codes.astype(np.int32)
    told = [name for name in context.columns if name == condition_column]
    condition, conditions = conditions_of(
        pa.Table.from_pandas(context[[*told, "machine_id"]], preserve_index=False), condition_column, request.source
    )
    status = pa.table(
        {
            "file": dictionary_column(np.zeros(len(codes), np.int16), [request.source.name]),
            "row": pa.array(order[usable].astype(np.int32)),
            "machine_id": dictionary_column(codes, [str(name) for name in machines]),
            "timestamp": time_column(time_us),
            "epoch": pa.array(np.zeros(len(codes), np.int32)),
        }
    )
    rows = Rows(
        spectra=spectra,
        machine=codes,
        machines=[str(name) for name in machines],
        epoch=np.zeros(len(codes), np.int32),
        condition=condition,
        conditions=conditions,
        time_us=time_us,
        status=status,
    )
    return LabelledRecording(rows, context, label, fleet, tuple(warnings))


def _labels(values: pd.Series, source: Path) -> np.ndarray:
    parsed = pd.to_numeric(values, errors="coerce")
    text = parsed.isna() & values.notna()
    if text.any():
        got = f"{values[text].iloc[0]!r} in {int(text.sum())} rows"
        raise ContractError.of(f"labels in {values.name}", got=got, expected="0, 1 or -1", where=source)
    numbers = parsed.fillna(UNKNOWN).to_numpy()
    other = ~np.isin(numbers, (HEALTHY, FAULTY, UNKNOWN))
    if other.any():
        got = f"{numbers[other][0]:g} in {int(other.sum())} rows"
        raise ContractError.of(f"labels in {values.name}", got=got, expected="0, 1 or -1", where=source)
    return np.asarray(numbers, dtype=np.int8)


def select(recording: LabelledRecording, query: str | None, option: str) -> BoolN:
    """Rows that a query names.

    Raises:
        UserError: the query cannot be understood, or names no row.
    """
    if query is None:
        return np.zeros(len(recording.rows), bool)
    try:
        index = recording.frame.query(query, engine="python").index.to_numpy()
    except Exception as error:  # noqa: BLE001  pandas raises any type for a text it cannot parse
        columns = ", ".join(map(str, recording.frame.columns))
        raise UserError(f"{option}: got {query!r} ({error}), expected an expression over {columns}.") from None
    if not len(index):
        raise UserError(f"{option}: got {query!r}, which names no row; expected at least one.")
    mask = np.zeros(len(recording.rows), bool)
    mask[index] = True
    return mask


def roles(recording: LabelledRecording, request: BacktestRequest) -> np.ndarray:
    """Role of each row (N,) text; baseline rows are never test rows, training rows are healthy.

    The training rows of a machine are cut in time: the first 60 % train (every fifth block validates), the last 38 %
    calibrate. Without a test query all later rows are judged.
    """
    baseline = select(recording, request.baseline_query, "--baseline-query")
    if request.train_query is None:
        trains = _first_part(recording, DEFAULT_TRAIN_PART)
    else:
        trains = select(recording, request.train_query, "--train-query")
    test = ~trains if request.test_query is None else select(recording, request.test_query, "--test-query")
    overlap = int((test & trains).sum())
    if overlap and request.test_query is not None:
        raise UserError(f"--test-query: got {overlap} rows that also train, expected none.")
    role = assign_roles(recording, baseline, trains, test)
    if not (role == Role.TEST).any():
        raise ContractError.of("test rows", got=0, expected="rows that do not train", where="--test-query")
    return role


def assign_roles(recording: LabelledRecording, baseline: BoolN, trains: BoolN, tests: BoolN) -> np.ndarray:
    """Roles (N,) from who describes, who trains and who is judged; a baseline row is never judged.

    Raises:
        ContractError: no healthy row trains.
    """
    healthy = recording.label == HEALTHY
    role = np.full(len(recording.rows), str(Role.NONE), dtype=object)
    role[tests & ~trains & ~baseline] = str(Role.TEST)
    role[baseline & healthy] = str(Role.BASELINE)
    fits = trains & healthy & ~baseline
    if not fits.any():
        raise ContractError.of(
            "training rows", got="no healthy row", expected="rows with label 0", where="--train-query"
        )
    for machine in np.unique(recording.rows.machine[fits]):
        _cut(role, np.flatnonzero(fits & (recording.rows.machine == machine)))
    return role


def _cut(role_N: np.ndarray, index: np.ndarray) -> None:
    """Assign train, validation and calibration to one machine's training rows, which are in time order."""
    position = np.arange(len(index)) / len(index)
    part = np.full(len(index), str(Role.CALIBRATION), dtype=object)
    part[position < TRAIN_PART + GAP_PART] = str(Role.NONE)
    train = position < TRAIN_PART
    part[train] = str(Role.TRAIN)
    block = (position / TRAIN_PART * VALIDATION_BLOCKS).astype(int)
    part[train & (block % VALIDATION_EVERY == VALIDATION_EVERY - 1)] = str(Role.VALIDATION)
    role_N[index] = part


def _first_part(recording: LabelledRecording, share: float) -> BoolN:
    """Rows in the first part of each machine's span, in time."""
    rows = recording.rows
    first, last = (np.zeros(len(rows.machines), np.int64) for _ in range(2))
    for machine in range(len(rows.machines)):
        times = rows.time_us[rows.machine == machine]
        first[machine], last[machine] = times.min(), times.max()
    return np.asarray(rows.time_us <= first[rows.machine] + (share * (last - first)).astype(np.int64)[rows.machine])


def take(recording: LabelledRecording, role_N: np.ndarray, mask_N: BoolN, failure_N: np.ndarray | None = None) -> Rows:
    """Some rows with their role, label and failure as columns of the status table."""
    index = np.flatnonzero(mask_N)
    rows = recording.rows.take(index)
    names = np.array([str(Label.HEALTHY), str(Label.FAULTY), str(Label.UNKNOWN)], dtype=object)
    failure = np.full(len(index), None, dtype=object) if failure_N is None else failure_N[index]
    roles = pa.array(role_N[index].tolist(), pa.string()).dictionary_encode().cast(TEXT)
    status = rows.status.append_column("role", roles)
    status = status.append_column("label", pa.array(names[recording.label[index]].tolist(), pa.string()))
    status = status.append_column("failure_id", pa.array(failure.tolist(), pa.string()))
    return replace(rows, status=status)


def run_fold(recording: LabelledRecording, role_N: np.ndarray, params: Params, say: Any) -> Fold:
    """Train every detector, calibrate, and score the test rows."""
    fits = np.isin(role_N, [str(Role.TRAIN), str(Role.VALIDATION), str(Role.BASELINE)])
    training = take(recording, role_N, fits)
    detectors, histories = {}, {}
    for name in params.detectors:

        def tell(line: str, name: str = name) -> None:
            say(f"{name}: {line}")

        detectors[name], histories[name] = train_detector(
            name, training, role_N[fits], recording.fleet, params.train, seed=params.seed, say=tell
        )
    healthy = take(recording, role_N, role_N == Role.CALIBRATION)
    nothing = take(recording, role_N, np.zeros(len(role_N), bool))
    calibration = calibrate(detectors, healthy, nothing, params)
    is_test = role_N == Role.TEST
    scored = score_rows(detectors, take(recording, role_N, is_test, failure_ids(recording)), calibration.tails)
    names, counts = np.unique(role_N.astype(str), return_counts=True)
    totals = {str(name): int(count) for name, count in zip(names, counts, strict=True)}
    return Fold(detectors, histories, calibration, scored, recording.label[is_test], totals)


def _runs(recording: LabelledRecording) -> list[tuple[int, int, int]]:
    """First, last and first unknown-before row of each run of faulty rows of one machine."""
    label, machine = recording.label, recording.rows.machine
    if not len(label):
        return []
    edge = np.flatnonzero(np.r_[True, (label[1:] != label[:-1]) | (machine[1:] != machine[:-1])])
    ends = np.r_[edge[1:] - 1, len(label) - 1]
    runs = []
    for position, (first, last) in enumerate(zip(edge, ends, strict=True)):
        if label[first] == FAULTY:
            before = edge[position - 1] if position else first
            unknown = position > 0 and label[before] == UNKNOWN and machine[before] == machine[first]
            runs.append((int(first), int(last), int(before) if unknown else int(first)))
    return runs


def failure_ids(recording: LabelledRecording) -> np.ndarray:
    """`machine#1`, `machine#2`, ... for the faulty rows, None elsewhere."""
    ids = np.full(len(recording.label), None, dtype=object)
    counts: dict[int, int] = {}
    for first, last, _ in _runs(recording):
        machine = int(recording.rows.machine[first])
        counts[machine] = counts.get(machine, 0) + 1
        ids[first : last + 1] = f"{recording.rows.machines[machine]}#{counts[machine]}"
    return ids


def events_of(recording: LabelledRecording, judged_N: BoolN) -> list[Event]:
    """The runs of faulty rows that are among the judged rows."""
    ids, time_us = failure_ids(recording), recording.rows.time_us
    modes = recording.frame.get("fault_type")
    events = []
    for first, last, before in _runs(recording):
        inside = np.flatnonzero(judged_N[first : last + 1])
        if len(inside):
            start = first + int(inside[0])
            mode = str(modes.iloc[first]) if modes is not None else None
            grace = int(time_us[before] if before < first else time_us[start])
            machine = int(recording.rows.machine[first])
            events.append(Event(str(ids[first]), machine, int(time_us[start]), int(time_us[last]), grace, mode))
    return events


def order_notes(recording: LabelledRecording, fold: Fold, request: BacktestRequest) -> list[str]:
    """Says how many judged rows are no later than what fitted and calibrated for their machine."""
    if request.across_machines:
        return []
    healthy = fold.calibration.healthy.rows
    last = np.full(len(recording.rows.machines), np.iinfo(np.int64).min)
    np.maximum.at(last, healthy.machine, healthy.time_us)
    early = int((fold.test.rows.time_us <= last[fold.test.rows.machine]).sum())
    if not early:
        return []
    return [
        f"{early:,} judged rows are earlier than the last calibration row of their machine: not a test in time order."
    ]


def judge_fold(
    recording: LabelledRecording,
    fold: Fold,
    params: Params,
    time: str,
    events: Sequence[Event] | None = None,
    thresholds: Mapping[str, float] | None = None,
) -> Judgement:
    """Judge the test rows of a fold."""
    rows, healthy = fold.test.rows, fold.calibration.healthy
    judged = np.zeros(len(recording.rows), bool)
    judged[np.isin(recording.rows.status["row"].to_numpy(), rows.status["row"].to_numpy())] = True
    calibration = JudgedRows(
        healthy.rows.machine, healthy.rows.time_us, np.full(len(healthy.rows), HEALTHY, np.int8), healthy.scores
    )
    return judge(
        JudgedRows(rows.machine, rows.time_us, fold.label, fold.test.scores),
        calibration,
        events_of(recording, judged) if events is None else events,
        recording.rows.machines,
        fold.calibration.policy,
        release_detector=params.release.detector,
        evaluate=params.evaluate,
        calibrate=fold.calibration.choice.settings(params.calibrate),
        calendar=time != "relative",
        thresholds=thresholds,
        seed=params.seed,
    )


def across_machines(
    recording: LabelledRecording, request: BacktestRequest, params: Params, say: Any
) -> tuple[Judgement, Fold]:
    """Leave each machine out in turn: the others train and calibrate, it alone is judged.

    Scores of different folds meet in units of their own fold's threshold, found on that fold's calibration rows, so
    that one ranking and one table hold them all.
    """
    if request.test_query is None:
        raise UserError(
            "--across-machines: got no --test-query, expected which rows of the left-out machine are judged."
        )
    trains = select(recording, request.train_query, "--train-query")
    tests = select(recording, request.test_query, "--test-query")
    baseline = select(recording, request.baseline_query, "--baseline-query")
    settings = params.calibrate.model_copy(update={"choice": ChoiceParams(enabled=False)})  # one policy for all folds
    params = params.model_copy(update={"calibrate": settings})
    folds = []
    for machine, name in enumerate(recording.rows.machines):
        mine = recording.rows.machine == machine
        if not (tests & mine).any():
            continue
        say(f"left out: {name}")
        role = assign_roles(recording, baseline, trains & ~mine, tests & mine)
        folds.append(_in_threshold_units(run_fold(recording, role, params, say)))
    if len(folds) < 2:
        raise ContractError.of("machines", got=len(folds), expected="at least two", where=request.source)
    merged = _merge(folds)
    thresholds = dict.fromkeys(merged.test.scores, 1.0)
    judgement = judge_fold(recording, merged, params, request.time, thresholds=thresholds)
    judgement.figures["per_machine"] = per_machine_auroc(merged)
    if any(value is None for row in judgement.figures["per_machine"].values() for value in row.values()):
        judgement.figures["null_reasons"]["per_machine"] = (
            "A machine without healthy or without faulty rows has no AUROC."
        )
    judgement.figures["notes"].append(
        f"{len(folds)} folds, each machine judged by models that never saw its training rows; scores in units of the "
        "fold's own threshold (one false episode on its calibration rows)."
    )
    return judgement, merged


def _in_threshold_units(fold: Fold) -> Fold:
    healthy = fold.calibration.healthy
    line = Timeline.of(healthy.rows.machine, healthy.rows.time_us, fold.calibration.policy)
    scale = {name: max(budget_threshold(healthy.scores[name], line, 1.0), 1e-12) for name in healthy.scores}
    calibrated = replace(healthy, scores={name: values / scale[name] for name, values in healthy.scores.items()})
    tested = replace(fold.test, scores={name: values / scale[name] for name, values in fold.test.scores.items()})
    return replace(fold, calibration=replace(fold.calibration, healthy=calibrated), test=tested)


def _merge(folds: Sequence[Fold]) -> Fold:
    """All folds' test rows, and all folds' calibration rows, as if they were one fold's."""
    first = folds[0]
    healthy = _concatenate([fold.calibration.healthy for fold in folds])
    test = _concatenate([fold.test for fold in folds])
    label = np.concatenate([fold.label for fold in folds])
    calibration = replace(first.calibration, healthy=healthy)
    return Fold(first.detectors, first.histories, calibration, test, label, first.counts)


def _concatenate(parts: Sequence[Scored]) -> Scored:
    return Scored(
        Rows.concatenate([part.rows for part in parts]),
        {name: np.concatenate([part.scores[name] for part in parts]) for name in parts[0].scores},
        {name: np.concatenate([part.raw[name] for part in parts]) for name in parts[0].raw},
        np.concatenate([part.baseline for part in parts]),
        np.concatenate([part.code for part in parts]),
    )


def per_machine_auroc(fold: Fold) -> dict[str, dict[str, float | None]]:
    """AUROC within each machine, per detector."""
    found: dict[str, dict[str, float | None]] = {}
    for machine in np.unique(fold.test.rows.machine):
        mine = (fold.test.rows.machine == machine) & (fold.label != UNKNOWN)
        both = len(np.unique(fold.label[mine])) == 2
        found[fold.test.rows.machines[machine]] = {
            name: round(float(roc_auc_score(fold.label[mine], values[mine])), 6) if both else None
            for name, values in fold.test.scores.items()
        }
    return found


def draw(recording: LabelledRecording, judgement: Judgement, fold: Fold, params: Params) -> Pictures:
    """What the report draws of single rows and failures."""
    rows, events = recording.rows, judgement.events
    healthy = recording.label == HEALTHY
    chosen = history_mask(rows.machine, rows.machines, rows.epoch, rows.time_us, healthy, events)
    history = take(recording, np.full(len(rows), str(Role.NONE), dtype=object), chosen)
    explains = params.explaining_detector
    return pictures(fold.detectors, explains, fold.test, history, judgement, recording.fleet, params.seed)


def write_backtest(out: Path, recording: LabelledRecording, judgement: Judgement, fold: Fold, params: Params) -> None:
    """metrics.json, report.html, the detectors, and what the report draws; the folder appears whole or not at all."""
    # across machines scores are in units of their own fold's threshold: one fold's thresholds would mean nothing there
    calibration = fold.calibration.to_json() if "per_machine" not in judgement.figures else None
    scores = scores_table(fold.test)
    drawn = draw(recording, judgement, fold, params)
    data = ReportData(
        evaluation=judgement.figures,
        title=f"{params.report.title} backtest",
        release_detector=params.release.detector,
        fleet=recording.fleet.model_dump(mode="json"),
        source=str(judgement.figures["dataset"]["source"]),
        calibration=calibration,
        calibration_scores=scores_table(fold.calibration.healthy) if calibration is not None else None,
        histories=fold.histories,
        scores=scores,
        events=judgement.events,
        episodes=judgement.episodes,
        roc=judgement.roc,
        curves=judgement.curves,
        reconstructions=drawn.spectra,
        error_profile=drawn.profile,
        evidence=drawn.evidence,
        codes=drawn.codes,
        params=params.model_dump(mode="json", by_alias=True, include={"seed", "train", "calibrate", "evaluate"}),
        max_failures=params.report.max_failures,
        notes=list(judgement.figures["notes"]),
    )
    page = render_report(data)
    with atomic_folder(out) as folder:
        write_json(folder / "metrics.json", judgement.figures)
        write_text(folder / "report.html", page)
        write_evaluation(folder / "evaluation", judgement, scores, drawn)
        if calibration is not None:
            write_json(folder / "calibration.json", calibration)
        for name, detector in fold.detectors.items():
            (folder / "models" / name).mkdir(parents=True)
            detector.save(folder / "models" / name)
            write_history(folder / "models" / name, fold.histories[name])

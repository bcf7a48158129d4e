"""Stage `evaluate`: one table of every detector on rows and failures that fitted and tuned nothing."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.alerts import AlertPolicy
from pipeline.calibrate import load_calibration
from pipeline.code_pictures import code_pictures
from pipeline.detectors import Detector, NeuralDetector
from pipeline.errors import ContractError, run_reporting_errors
from pipeline.evidence import error_profile, evidence_table, history_mask
from pipeline.judge import judge
from pipeline.judging.judged import FAULTY, HEALTHY, UNKNOWN, Event, JudgedRows, Judgement
from pipeline.measure import Scored, condition_column, load_detectors, score_rows, scores_table
from pipeline.moments import iso, to_us
from pipeline.params import Params, load_params
from pipeline.rows import Rows, has_role, load_rows
from pipeline.schema import (
    FAILURE_SCHEMA,
    MICROSECONDS_PER_HOUR,
    TRUTH_SCHEMA,
    BoolN,
    FleetSpec,
    FloatN,
    Label,
    Role,
    codes_and_names,
    load_fleet_spec,
    times_us,
)
from pipeline.store import atomic_folder, read_table, write_json, write_table
from pipeline.train import use_threads
from pipeline.what_if import grid

EXAMPLES = 3
WORST = 5
LATE_LOG_HOURS = 72  # a log entry may follow the true end of a fault by this much and still mean it


def label_codes(label_N: np.ndarray) -> np.ndarray:
    """Labels of a split table as 0 healthy, 1 faulty, -1 unknown."""
    codes = np.full(len(label_N), UNKNOWN, np.int8)
    codes[label_N == Label.HEALTHY] = HEALTHY
    codes[label_N == Label.FAULTY] = FAULTY
    return codes


def events_of(
    failures: pa.Table, rows: Rows, horizon_hours: float, truth: pa.Table | None
) -> tuple[list[Event], list[Event]]:
    """The failures that the rows can judge: their horizon, or in a simulation what of it lies after the true onset.

    Returns:
        The failures, and apart from them those that a simulation knows never to have happened: nobody can catch them.
    """
    judged = set(rows.column("failure_id")) - {""}
    codes = {machine: code for code, machine in enumerate(rows.machines)}
    events: list[Event] = []
    invented: list[Event] = []
    for failure, time_us in zip(failures.to_pylist(), times_us(failures["time"]), strict=True):
        if failure["failure_id"] not in judged or failure["machine_id"] not in codes:
            continue
        start = int(time_us) - int(horizon_hours * MICROSECONDS_PER_HOUR)
        onset = _onset(failure["machine_id"], start, int(time_us), truth)
        start = start if onset is None else max(start, onset)
        machine, mode = codes[failure["machine_id"]], failure["failure_mode"]
        event = Event(failure["failure_id"], machine, start, int(time_us), start, mode)
        (invented if truth is not None and onset is None else events).append(event)
    return events, invented


def _onset(machine: str, start: int, end: int, truth: pa.Table | None) -> int | None:
    if truth is None:
        return None
    onsets, ends = times_us(truth["onset"]), times_us(truth["end"])
    mine = np.array(truth["machine_id"].to_pylist()) == machine
    slack = LATE_LOG_HOURS * MICROSECONDS_PER_HOUR
    near = np.flatnonzero(mine & (onsets < end) & (ends > start - slack))
    return int(onsets[near[-1]]) if len(near) else None


def truly_faulty(rows: Rows, truth: pa.Table) -> BoolN:
    """Rows that a simulation knows to be faulty, whatever its log says."""
    faulty = np.zeros(len(rows), bool)
    codes = {machine: code for code, machine in enumerate(rows.machines)}
    spans = zip(truth["machine_id"].to_pylist(), times_us(truth["onset"]), times_us(truth["end"]), strict=True)
    for machine, onset, end in spans:
        if machine in codes:
            faulty |= (rows.machine == codes[machine]) & (rows.time_us >= onset) & (rows.time_us <= end)
    return faulty


def judged_labels(rows: Rows, label_N: np.ndarray, truth: pa.Table | None) -> tuple[np.ndarray, BoolN]:
    """Labels as they are judged, and which rows are: what a simulation knows to be faulty without a failure is not."""
    if truth is None:
        return label_N, np.ones(len(label_N), bool)
    faulty_N = truly_faulty(rows, truth)
    keep_N = ~(faulty_N & (label_N != FAULTY))
    return np.where((label_N == FAULTY) & ~faulty_N, UNKNOWN, label_N).astype(np.int8), keep_N


def judged_rows(scored: Scored, label_N: np.ndarray, keep_N: BoolN) -> JudgedRows:
    """What `judge` wants, of the rows to keep."""
    scores = {name: values[keep_N] for name, values in scored.scores.items()}
    rows = scored.rows
    return JudgedRows(rows.machine[keep_N], rows.time_us[keep_N], label_N[keep_N], scores, rows.epoch[keep_N])


def load_calibration_rows(root: Path, machines: Sequence[str]) -> JudgedRows:
    """Healthy rows with scores as `calibrate` wrote them, their machines as codes into `machines` and beyond."""
    table = read_table(root / "data/calibration/scores.parquet")
    machine, names = codes_and_names(table["machine_id"])
    known = {name: code for code, name in enumerate(machines)}
    codes = np.array([known.setdefault(name, len(known)) for name in names], np.int32)
    scores = {
        column.removeprefix("score_"): table[column].to_numpy()
        for column in table.column_names
        if column.startswith("score_")
    }
    label = np.full(table.num_rows, HEALTHY, np.int8)
    return JudgedRows(codes[machine], times_us(table["timestamp"]), label, scores, table["epoch"].to_numpy())


def evaluate(
    scored: Scored,
    calibration: JudgedRows,
    failures: pa.Table,
    truth: pa.Table | None,
    policy: AlertPolicy,
    figures: Mapping[str, Any],
    params: Params,
    fleet: FleetSpec,
    never_seen: Collection[str] = (),
) -> Judgement:
    """Judge scored test rows of a build: the machines that train, later; and apart, those never seen. See `judge`.

    In a simulation rows that are truly faulty without a failure in the log are set aside: they are neither.
    """
    rows = scored.rows
    events, invented = events_of(failures, rows, params.split.horizon_hours, truth)
    label_N, keep_N = judged_labels(rows, label_codes(rows.column("label")), truth)
    unseen = np.isin(np.array(rows.machines, dtype=object)[rows.machine], list(never_seen))
    verdicts: list[Judgement | None] = []
    parts = []
    for chosen in (~unseen, unseen):
        machines = set(rows.machine[chosen].tolist())
        test = judged_rows(scored, label_N, keep_N & chosen)
        mine = [event for event in events if event.machine in machines]
        parts.append((test, mine))
        verdicts.append(
            judge(
                test,
                calibration,
                mine,
                rows.machines,
                policy,
                release_detector=params.release.detector,
                evaluate=params.evaluate,
                calibrate=params.calibrate,
                calendar=fleet.time == "absolute",
                seed=params.seed,
            )
            if (keep_N & chosen).any()
            else None
        )
    primary, secondary = verdicts
    if primary is None:
        raise ContractError.of("test rows", got=0, expected="rows of machines that train", where="role test")
    detector = params.release.detector
    other_settings = grid(
        *parts[0],
        rows.machines,
        calibration.scores[detector],
        figures[detector],
        policy,
        detector=detector,
        budget_per_machine_day=params.evaluate.false_episodes_per_machine_day,
        shifts=params.evaluate.chance_shifts,
        seed=params.seed,
        calendar=fleet.time == "absolute",
    )
    primary = replace(primary, what_if=other_settings)
    if invented:
        what = "failure" if len(invented) == 1 else "failures"
        primary.figures["notes"].append(f"{len(invented)} logged {what} never happened (simulation).")
    primary.figures["unseen_machines"] = None
    if secondary is None:
        primary.figures["null_reasons"]["unseen_machines"] = "No machine is held out (split.unseen_machine_share)."
    else:
        kept = ("dataset", "detectors", "tiers", "null_reasons")
        primary.figures["unseen_machines"] = {key: secondary.figures[key] for key in kept}
    return primary


def machines_never_seen(split: pa.Table) -> set[str]:
    """Machines of which some rows only describe them: no model saw any other."""
    names = split.filter(pa.array(has_role(split, Role.BASELINE)))["machine_id"]
    return set(names.cast(pa.string()).unique().to_pylist())


@dataclass(frozen=True)
class Pictures:
    """What a report draws beside the judgement, of the release's own detector."""

    spectra: list[dict[str, Any]]  # single rows with their reconstructions
    profile: dict[str, Any]  # error by bin
    evidence: pa.Table  # a row per judged failure
    codes: dict[str, Any]  # of the networks: see `code_pictures`


def pictures(
    detectors: Mapping[str, Detector],
    explains: str,
    scored: Scored,
    history: Rows,
    judgement: Judgement,
    fleet: FleetSpec,
    seed: int,
) -> Pictures:
    """Everything that a report draws of single rows and failures, and of codes.

    Args:
        detectors: all that were judged.
        explains: the one whose reconstructions and shares are shown.
        scored: test rows.
        history: as `history_mask` chose it.
        judgement: its failures and episodes.
        fleet: names of the bins.
        seed: of samples.
    """
    detector, label_N = detectors[explains], scored.rows.column("label")
    codes = code_pictures(detectors, scored, judgement, fleet, seed)
    profile = error_profile(detector, scored.rows, label_N == Label.HEALTHY, label_N == Label.FAULTY, fleet)
    evidence = evidence_table(detector, scored.rows, history, judgement, fleet)
    return Pictures(reconstructions(detector, scored, judgement, fleet), profile, evidence, codes)


def reconstructions(detector: Detector, scored: Scored, judgement: Judgement, fleet: FleetSpec) -> list[dict[str, Any]]:
    """Healthy spectra, the worst of them, and some at the start of an alert that caught a failure.

    A detector that reconstructs nothing leaves `reconstruction` null.
    """
    rows, values = scored.rows, scored.scores[detector.name]
    picked = _examples(rows, values, judgement)
    if not picked:
        return []
    index = np.array([position for position, _ in picked])
    code = detector.baselines.codes(rows.keys.take(index))
    if isinstance(detector, NeuralDetector):
        original, rebuilt = detector.reconstruct(rows.spectra[index], code)
    else:
        original, rebuilt = detector.relative(rows.spectra[index], code)[:, :-1].cpu().numpy(), None
    share = detector.explain(rows.spectra[index], code)
    share /= np.maximum(share.sum(1, keepdims=True), 1e-300)
    bands = [fleet.band_name(index) for index in range(fleet.bins)]
    return [
        {
            "machine_id": rows.machines[rows.machine[position]],
            "timestamp": iso(int(rows.time_us[position])),
            "kind": kind,
            "score": float(f"{values[position]:.6g}"),
            "bands": bands,
            "original": np.round(original[item].astype(float), 4).tolist(),
            "reconstruction": None if rebuilt is None else np.round(rebuilt[item].astype(float), 4).tolist(),
            "share": np.round(share[item], 5).tolist(),
        }
        for item, (position, kind) in enumerate(picked)
    ]


def _examples(rows: Rows, values_N: FloatN, judgement: Judgement) -> list[tuple[int, str]]:
    """Positions and kinds: three healthy rows, the worst row of five machines each, a row at each of three alerts."""
    healthy = np.flatnonzero(rows.column("label") == Label.HEALTHY)
    ranked = healthy[np.argsort(values_N[healthy], kind="stable")]
    picked = [(int(ranked[int(len(ranked) * share)]), "healthy") for share in (0.1, 0.5, 0.9) if len(ranked)]
    worst: dict[int, int] = {}  # one of a machine: neighbouring rows are alike
    for position in ranked[::-1]:
        worst.setdefault(int(rows.machine[position]), int(position))
        if len(worst) == WORST:
            break
    picked += [(position, "worst") for position in worst.values()]
    codes = {machine: code for code, machine in enumerate(rows.machines)}
    for episode in [item for item in judgement.episodes if item["kind"] == "caught"][:EXAMPLES]:
        opened = to_us(episode["start"])
        mine = np.flatnonzero((rows.machine == codes[episode["machine_id"]]) & (rows.time_us >= opened))
        if len(mine):
            picked.append((int(mine[np.argmin(rows.time_us[mine])]), "alert"))
    return picked


def load_history(raw: Path, split: pa.Table, judgement: Judgement, fleet: FleetSpec, condition: str | None) -> Rows:
    """Healthy rows of the failed machines before their failures, in whatever role."""
    machine, machines = codes_and_names(split["machine_id"])
    labels, names = codes_and_names(split["label"])
    healthy = labels == (names.index(Label.HEALTHY) if Label.HEALTHY in names else -1)
    times, epoch = times_us(split["timestamp"]), split["epoch"].to_numpy()
    chosen = history_mask(machine, machines, epoch, times, healthy, judgement.events)
    return load_rows(raw, split, chosen, fleet.bins, condition)


def write_evaluation(folder: Path, judgement: Judgement, scores: pa.Table, drawn: Pictures) -> None:
    """Everything that a report draws, into an existing folder."""
    write_table(folder / "scores.parquet", scores)
    write_json(folder / "events.json", judgement.events)
    write_json(folder / "episodes.json", judgement.episodes)
    write_json(folder / "plots/roc.json", judgement.roc)
    write_json(folder / "plots/episodes.json", judgement.curves)
    write_json(folder / "what_if.json", judgement.what_if)
    write_json(folder / "reconstructions.json", drawn.spectra)
    write_json(folder / "error_profile.json", drawn.profile)
    write_table(folder / "evidence.parquet", drawn.evidence)
    write_json(folder / "codes.json", drawn.codes)


def read_truth(data_set: Path, wanted: bool) -> pa.Table | None:
    """What a simulation knows, where there is one; this stage and `what_if_sources` read it, and nobody else."""
    path = data_set / "truth.parquet"
    return read_table(path, schema=TRUTH_SCHEMA) if wanted and path.exists() else None


def main() -> None:
    """Command line of the stage."""
    params, root = load_params(), Path()
    use_threads(params.train.threads)
    raw, fleet = root / "data/raw", load_fleet_spec(root / "data/raw/fleet.yaml")
    split = read_table(root / "data/status/split.parquet")
    selected = has_role(split, Role.TEST)
    if not selected.any():
        raise ContractError.of("test rows", got=0, expected="rows after calibration", where="role test")
    detectors = load_detectors(root, params.detectors, params.train.device)
    column = condition_column(detectors)
    rows = load_rows(raw, split, selected, fleet.bins, column)
    tails, calibrated = load_calibration(root / "data/calibration", params.detectors)
    print(f"progress evaluate: {len(rows):,} test rows", flush=True)
    scored = score_rows(detectors, rows, tails)
    calibration = load_calibration_rows(root, rows.machines)
    failures = read_table(raw / "failures.parquet", schema=FAILURE_SCHEMA)
    truth = read_truth(raw, params.evaluate.use_truth)
    policy, never_seen = AlertPolicy.from_json(calibrated["policy"]), machines_never_seen(split)
    chosen = params.calibrate.model_copy(update={"page_percentile": calibrated["choice"]["page_percentile"]})
    params = params.model_copy(update={"calibrate": chosen})
    judgement = evaluate(
        scored, calibration, failures, truth, policy, calibrated["detectors"], params, fleet, never_seen
    )
    judgement.figures["notes"] += calibrated["notes"]
    with atomic_folder(root / "data/evaluation") as folder:
        history = load_history(raw, split, judgement, fleet, column)
        explains = params.explaining_detector
        drawn = pictures(detectors, explains, scored, history, judgement, fleet, params.seed)
        write_evaluation(folder, judgement, scores_table(scored), drawn)
    write_json(root / "metrics/evaluation.json", judgement.figures)


if __name__ == "__main__":
    run_reporting_errors(main)

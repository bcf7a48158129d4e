"""What the report is made from, and how it is gathered from the outputs of the stages.

Every part is optional: a stage that wrote nothing leaves its section with a sentence that says so. Only damage is an
error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import yaml

from pipeline.errors import ContractError
from pipeline.params import DETECTOR_NAMES, Params
from pipeline.report_page.blocks import as_map, as_number
from pipeline.schema import BoolN, FloatN, codes_and_names
from pipeline.store import read_json, read_table, sha256_folder

DATA_DOCS = "data_docs/index.html"  # from the page
DAY_COLUMNS = ("machine_id", "day", "findings", "of_the_plant")
SCORES_ABSENT = "the evaluation wrote no scores per row"


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """All that the report shows; plain JSON values, and one Arrow table of scores."""

    evaluation: Mapping[str, Any]  # metrics/evaluation.json
    title: str = "Hearken"
    release_detector: str | None = None  # None: as the evaluation says
    release_id: str | None = None
    manifest: Mapping[str, Any] = field(default_factory=dict)  # of the release
    snapshot: Mapping[str, Any] = field(default_factory=dict)  # data/raw/snapshot.json
    fleet: Mapping[str, Any] = field(default_factory=dict)  # fleet.yaml
    source: str | None = None  # where the data came from
    validation: Mapping[str, Any] | None = None  # metrics/validation.json
    days: pa.Table | None = None  # data/validation/days.parquet: machine_id, day, findings, of_the_plant
    data_docs: bool = False  # whether DATA_DOCS lies beside the page
    split: Mapping[str, Any] | None = None  # metrics/split.json
    cleaning: Mapping[str, Any] | None = None  # metrics/cleaning.json
    worst: Sequence[Mapping[str, Any]] = ()  # data/cleaning/worst.json
    calibration: Mapping[str, Any] | None = None  # data/calibration/calibration.json
    histories: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # history.json by detector
    scores: pa.Table | None = None  # data/evaluation/scores.parquet
    events: Sequence[Mapping[str, Any]] | None = None  # data/evaluation/events.json
    episodes: Sequence[Mapping[str, Any]] = ()  # data/evaluation/episodes.json
    calibration_scores: pa.Table | None = None  # data/calibration/scores.parquet
    roc: Sequence[Mapping[str, Any]] = ()  # data/evaluation/plots/roc.json
    curves: Sequence[Mapping[str, Any]] = ()  # data/evaluation/plots/episodes.json
    what_if: Mapping[str, Any] | None = None  # data/evaluation/what_if.json
    reconstructions: Sequence[Mapping[str, Any]] | None = None  # data/evaluation/reconstructions.json
    error_profile: Mapping[str, Any] | None = None  # data/evaluation/error_profile.json
    evidence: pa.Table | None = None  # data/evaluation/evidence.parquet
    codes: Mapping[str, Any] | None = None  # data/evaluation/codes.json
    params: Mapping[str, Any] = field(default_factory=dict)  # the settings that were used
    max_failures: int = 100
    missing: Mapping[str, str] = field(default_factory=dict)  # section id -> why it is empty
    notes: Sequence[str] = ()  # sentences for the last section

    @property
    def detector(self) -> str:
        """The detector whose tiers raise alerts; empty where it is not known."""
        return self.release_detector or str(self.evaluation.get("release_detector") or "")

    def thresholds(self, detector: str) -> dict[str, float | None]:
        """Low and page threshold of a detector; of the release detector those that were judged."""
        calibrated = as_map(as_map(as_map(self.calibration).get("detectors")).get(detector))
        judged = as_map(self.evaluation.get("tiers")) if detector == self.detector else {}
        found: dict[str, float | None] = {}
        for tier in ("low", "page"):
            value = as_number(as_map(judged.get(tier)).get("threshold"))
            found[tier] = as_number(as_map(calibrated.get(tier)).get("threshold")) if value is None else value
        return found


def gather(root: Path | str, params: Params) -> ReportData:
    """Read the stages' outputs below a folder (the working directory of the graph).

    Args:
        root: holds `metrics/` and `data/`.
        params: the report's own settings; those that made the figures are read from the release.

    Raises:
        ContractError: no metrics/evaluation.json, or a file that is damaged or of another form.
    """
    root = Path(root)
    metrics, data = root / "metrics", root / "data"
    evaluation_path = metrics / "evaluation.json"
    evaluation = _object(evaluation_path)
    if evaluation is None:
        raise ContractError.of("metrics", got="no file", expected="the evaluation's figures", where=evaluation_path)
    names = list(as_map(evaluation.get("detectors"))) or list(params.detectors)
    histories = {name: _object(data / "models" / name / "history.json") for name in names}
    scores = data / "evaluation" / "scores.parquet"
    calibrated = data / "calibration" / "scores.parquet"
    evidence = data / "evaluation" / "evidence.parquet"
    days = data / "validation" / "days.parquet"
    release = data / "release"
    manifest = _object(release / "manifest.json") or {}
    return ReportData(
        evaluation=evaluation,
        title=params.report.title,
        release_detector=str(evaluation.get("release_detector") or params.release.detector),
        release_id=sha256_folder(release)[:16] if release.is_dir() else None,
        manifest=manifest,
        snapshot=_object(data / "raw" / "snapshot.json") or {},
        fleet=_read_yaml(data / "raw" / "fleet.yaml"),
        validation=_object(metrics / "validation.json"),
        days=read_table(days, DAY_COLUMNS) if days.exists() else None,
        data_docs=(root / "reports" / DATA_DOCS).is_file(),
        split=_object(metrics / "split.json"),
        cleaning=_object(metrics / "cleaning.json"),
        worst=_list(data / "cleaning" / "worst.json") or (),
        calibration=_object(data / "calibration" / "calibration.json"),
        histories={name: history for name, history in histories.items() if history is not None},
        scores=read_table(scores) if scores.exists() else None,
        calibration_scores=read_table(calibrated) if calibrated.exists() else None,
        events=_list(data / "evaluation" / "events.json"),
        episodes=_list(data / "evaluation" / "episodes.json") or (),
        roc=_list(data / "evaluation" / "plots" / "roc.json") or (),
        curves=_list(data / "evaluation" / "plots" / "episodes.json") or (),
        what_if=_object(data / "evaluation" / "what_if.json"),
        reconstructions=_list(data / "evaluation" / "reconstructions.json"),
        error_profile=_object(data / "evaluation" / "error_profile.json"),
        evidence=read_table(evidence) if evidence.exists() else None,
        codes=_object(data / "evaluation" / "codes.json"),
        # the settings that stand in the release, not today's file: the page must not change without its inputs
        params=as_map(manifest.get("params")),
        max_failures=params.report.max_failures,
    )


def _object(path: Path) -> Mapping[str, Any] | None:
    """A JSON object; None where there is no file."""
    found: Mapping[str, Any] | None = _checked(path, _is_object, "an object")
    return found


def _list(path: Path) -> Sequence[Mapping[str, Any]] | None:
    """A JSON list of objects; None where there is no file."""
    expected = "a list of objects"
    found: Sequence[Mapping[str, Any]] | None = _checked(path, _is_list_of_objects, expected)
    return found


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _is_list_of_objects(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_object, value))


def _checked(path: Path, fits: Callable[[Any], bool], expected: str) -> Any:
    if not path.exists():
        return None
    value = read_json(path)
    if not fits(value):
        raise ContractError.of("JSON", got=f"a {type(value).__name__}", expected=expected, where=path)
    return value


def _read_yaml(path: Path) -> Mapping[str, Any]:
    if not path.exists():
        return {}
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ContractError.of("YAML", got=str(error), expected="a mapping", where=path) from None
    return as_map(value)


def detector_order(data: ReportData) -> list[str]:
    """Detectors of the evaluation, the release detector first, then as params.yaml lists them, then others by name."""
    names = as_map(data.evaluation.get("detectors"))
    return sorted(names, key=lambda name: (name != data.detector, *_place(name)))


def _place(name: str) -> tuple[int, str]:
    return (DETECTOR_NAMES.index(name) if name in DETECTOR_NAMES else len(DETECTOR_NAMES), name)


def test_scores(data: ReportData) -> list[tuple[str, FloatN, FloatN]]:
    """(detector, healthy test scores, test scores before failures), for each detector with any finite score."""
    table = data.scores
    if table is None:
        return []
    order = detector_order(data)
    names = [name.removeprefix("score_") for name in table.column_names if name.startswith("score_")]
    names.sort(key=lambda name: (order.index(name) if name in order else len(order), name))
    test = _equals(table, "role", "test") if "role" in table.column_names else np.ones(table.num_rows, bool)
    healthy, faulty = (test & _equals(table, "label", label) for label in ("healthy", "faulty"))
    found = []
    for name in names:
        scores = table[f"score_{name}"].to_numpy()
        finite = np.isfinite(scores)
        if (finite & (healthy | faulty)).any():
            found.append((name, scores[healthy & finite], scores[faulty & finite]))
    return found


def _equals(table: pa.Table, column: str, value: str) -> BoolN:
    codes, names = codes_and_names(table[column])
    return np.asarray(codes == names.index(value)) if value in names else np.zeros(table.num_rows, bool)


def threshold_setters(data: ReportData) -> list[tuple[str, int, float]]:
    """Machines with calibration rows above the release's low threshold: (name, rows, share of all such), most first."""
    table, column = data.calibration_scores, f"score_{data.detector}"
    threshold = data.thresholds(data.detector)["low"]
    if table is None or threshold is None or column not in table.column_names:
        return []
    codes, names = codes_and_names(table["machine_id"])
    above = np.bincount(codes[(table[column].to_numpy() >= threshold) & (codes >= 0)], minlength=len(names))
    order = np.argsort(-above, kind="stable")
    return [(names[place], int(above[place]), float(above[place] / above.sum())) for place in order if above[place]]


def judged_failures(data: ReportData) -> list[Mapping[str, Any]]:
    """Test failures in order of time."""
    events = [event for event in data.events or [] if event.get("role", "test") == "test"]
    return sorted(events, key=lambda event: (str(event.get("time")), str(event.get("failure_id"))))


def release_verdict(data: ReportData, event: Mapping[str, Any]) -> tuple[bool, float | None]:
    """Caught and lead time in service, at the page tier, whose episodes are drawn; else as in the comparison."""
    in_service = as_map(data.evaluation.get("in_service"))
    if isinstance(in_service.get("caught"), Mapping):
        lead = as_number(in_service["caught"].get(str(event.get("failure_id"))))
        return lead is not None, lead
    verdict = as_map(as_map(event.get("detectors")).get(data.detector))
    return bool(verdict.get("caught")), as_number(verdict.get("lead_time_hours"))

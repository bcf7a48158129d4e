"""What the report is made from, and how it is gathered from the outputs of the stages.

Every part is optional: a stage that wrote nothing leaves its section with a sentence that says so. Only damage is an error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml

from pipeline.errors import ContractError
from pipeline.params import Params
from pipeline.report_blocks import as_map
from pipeline.store import read_json, read_table, sha256_folder

SCORES_ABSENT = "the evaluation wrote no scores per row"


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """All that the report shows; plain JSON values, and one Arrow table of scores."""

    evaluation: Mapping[str, Any]  # metrics/evaluation.json
    title: str = "Hearken"
    release_detector: str | None = None  # None: as the evaluation says
    release_id: str | None = None
    fleet: Mapping[str, Any] = field(default_factory=dict)  # fleet.yaml
    source: str | None = None  # where the data came from
    validation: Mapping[str, Any] | None = None  # metrics/validation.json
    split: Mapping[str, Any] | None = None  # metrics/split.json
    cleaning: Mapping[str, Any] | None = None  # metrics/cleaning.json
    calibration: Mapping[str, Any] | None = None  # data/calibration/calibration.json
    histories: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # history.json by detector
    scores: pa.Table | None = None  # data/evaluation/scores.parquet
    events: Sequence[Mapping[str, Any]] | None = None  # data/evaluation/events.json
    episodes: Sequence[Mapping[str, Any]] = ()  # data/evaluation/episodes.json
    roc: Sequence[Mapping[str, Any]] = ()  # data/evaluation/plots/roc.json
    reconstructions: Sequence[Mapping[str, Any]] | None = None  # data/evaluation/reconstructions.json
    params: Mapping[str, Any] = field(default_factory=dict)  # the settings that were used
    max_failures: int = 12
    missing: Mapping[str, str] = field(default_factory=dict)  # section id -> why it is empty
    notes: Sequence[str] = ()  # sentences for the last section

    @property
    def detector(self) -> str | None:
        """The detector whose tiers raise alerts."""
        return self.release_detector or self.evaluation.get("release_detector")

    def thresholds(self, detector: str | None) -> dict[str, float | None]:
        """Low and page threshold of a detector; of the release detector also where only the tiers hold them."""
        own = as_map(as_map(as_map(self.calibration).get("detectors")).get(detector))
        tiers = as_map(self.evaluation.get("tiers")) if detector == self.detector else {}
        found: dict[str, float | None] = {}
        for tier in ("low", "page"):
            value = as_map(own.get(tier)).get("threshold", as_map(tiers.get(tier)).get("threshold"))
            found[tier] = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
        return found


def gather(root: Path | str, params: Params) -> ReportData:
    """Read the stages' outputs below a folder (the working directory of the graph).

    Args:
        root: holds `metrics/` and `data/`.
        params: the settings that made them.

    Raises:
        ContractError: no metrics/evaluation.json, or a file that is damaged or of another form.
    """
    root = Path(root)
    metrics, data = root / "metrics", root / "data"
    evaluation_path = metrics / "evaluation.json"
    evaluation = _read(evaluation_path, Mapping)
    if evaluation is None:
        raise ContractError.of("metrics", got="no file", expected="the evaluation's figures", where=evaluation_path)
    histories = {name: _read(data / "models" / name / "history.json", Mapping) for name in params.detectors}
    scores = data / "evaluation" / "scores.parquet"
    release = data / "release"
    return ReportData(
        evaluation=evaluation,
        title=params.report.title,
        release_detector=str(evaluation.get("release_detector") or params.release.detector),
        release_id=sha256_folder(release)[:16] if release.is_dir() else None,
        fleet=_read_yaml(data / "raw" / "fleet.yaml"),
        source=params.source.path,
        validation=_read(metrics / "validation.json", Mapping),
        split=_read(metrics / "split.json", Mapping),
        cleaning=_read(metrics / "cleaning.json", Mapping),
        calibration=_read(data / "calibration" / "calibration.json", Mapping),
        histories={name: history for name, history in histories.items() if history is not None},
        scores=read_table(scores) if scores.exists() else None,
        events=_read(data / "evaluation" / "events.json", list),
        episodes=_read(data / "evaluation" / "episodes.json", list) or (),
        roc=_read(data / "evaluation" / "plots" / "roc.json", list) or (),
        reconstructions=_read(data / "evaluation" / "reconstructions.json", list),
        params=params.model_dump(mode="json", by_alias=True),
        max_failures=params.report.max_failures,
    )


def _read(path: Path, kind: type) -> Any:
    """A JSON file of the expected kind; None where there is no file."""
    if not path.exists():
        return None
    value = read_json(path)
    if not isinstance(value, kind) or (kind is list and not all(isinstance(entry, Mapping) for entry in value)):
        expected = "a list of objects" if kind is list else "an object"
        raise ContractError.of("JSON", got=f"a {type(value).__name__} of another form", expected=expected, where=path)
    return value


def _read_yaml(path: Path) -> Mapping[str, Any]:
    if not path.exists():
        return {}
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ContractError.of("YAML", got=str(error), expected="a mapping", where=path) from None
    return as_map(value)

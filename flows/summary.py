"""What a build came to: for the terminal, for Prefect's artifacts, and as files in the checkout."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from flows.stages import Outcome, StageResult
from flows.terminal import table
from pipeline import store
from pipeline.errors import printable

EVALUATION = Path("metrics/evaluation.json")
REPORT = Path("reports/index.html")
DATA_DOCS = Path("reports/data_docs/index.html")
COPIED = ("reports", "metrics")
FIGURES = (
    "auroc",
    "average_precision",
    "partial_auroc",
    "events",
    "events_caught",
    "events_by_chance",
    "false_episodes_per_day",
    "median_lead_time_hours",
)


@dataclass(frozen=True, kw_only=True)
class BuildResult:
    """A finished build.

    `release_id` is its id in the registry and `version` its number there (None: the graph made none); `note` says what
    a person should know, such as a tag that was refused.
    """

    folder: Path
    commit: str
    branch: str
    stages: tuple[StageResult, ...]
    seconds: float
    release_id: str | None = None
    version: int | None = None
    note: str = ""

    @property
    def changed(self) -> bool:
        """Whether any stage was started."""
        return any(stage.outcome != Outcome.UNCHANGED for stage in self.stages)

    @property
    def compute_seconds(self) -> float:
        """The stages' own time, without DVC's where they said it."""
        return sum(
            stage.compute_seconds if stage.compute_seconds is not None else stage.seconds for stage in self.stages
        )


def stage_rows(stages: Sequence[StageResult]) -> list[dict[str, Any]]:
    """A row per stage."""
    return [
        {"stage": stage.stage, "what happened": stage.outcome.value, "seconds": round(stage.seconds, 1)}
        for stage in stages
    ]


def evaluation_rows(folder: Path) -> list[dict[str, Any]]:
    """A row per detector of metrics/evaluation.json; empty where there is none."""
    path = folder / EVALUATION
    if not path.is_file():
        return []
    detectors = store.read_json(path).get("detectors", {})
    return [{"detector": name} | {key: figures.get(key) for key in FIGURES} for name, figures in detectors.items()]


def shown(value: object) -> str:
    """A figure for people; what the data cannot tell is a dash.

    >>> shown(0.98765), shown(None), shown(12)
    ('0.988', '–', '12')
    """
    if value is None:
        return "–"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def comparison_table(figures: dict[str, Any]) -> Table:
    """The table of every detector, as it stands in metrics.json."""
    title = "Every detector, the same rows, the same budget of false alarms"
    made = table(title=title)
    made.add_column("detector", no_wrap=True)
    for column in ("AUROC, 90 %", "avg prec", "caught", "chance", "false", "lead h"):
        made.add_column(column, justify="right", no_wrap=True)
    for name, row in figures["detectors"].items():
        interval = row.get("auroc_ci")
        made.add_row(
            name,
            _number(row.get("auroc"), 3) + ("" if not interval else f" {interval[0]:.3f}-{interval[1]:.3f}"),
            _number(row.get("average_precision"), 3),
            "–" if row.get("events_caught") is None else f"{row.get('events_caught')} of {row.get('events')}",
            _number(row.get("events_by_chance"), 1),
            _number(row.get("false_episodes"), 0),
            _number(row.get("median_lead_time_hours"), 1),
        )
    return made


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def print_summary(result: BuildResult, console: Console | None = None) -> None:
    """The tables at the end of a build."""
    console = console or Console()
    made = table(title="Stages")
    for name in ("stage", "what happened", "seconds"):
        made.add_column(name, justify="left" if name == "stage" else "right")
    for row in stage_rows(result.stages):
        made.add_row(*(shown(value) for value in row.values()))
    console.print(made)
    if (result.folder / EVALUATION).is_file():
        console.print(comparison_table(store.read_json(result.folder / EVALUATION)))
    if result.release_id:
        console.print(f"release v{result.version} ({result.release_id})", highlight=False)
    if result.note:
        console.print(f"note: {printable(result.note)}", highlight=False, soft_wrap=True, markup=False)
    console.print(f"{'built' if result.changed else 'nothing changed'} in {result.seconds:.1f} s", highlight=False)


def copy_outputs(folder: Path, checkout: Path) -> list[Path]:
    """Copy report, Data Docs and metrics of a private clone to a checkout; return what was written."""
    written: list[Path] = []
    if folder.resolve() == checkout.resolve():
        return written
    for name in COPIED:
        for source in sorted((folder / name).rglob("*")):
            if source.is_file() and source.name != ".gitignore":
                target = checkout / source.relative_to(folder)
                with store.atomic_file(target) as temporary:
                    shutil.copyfile(source, temporary)
                written.append(target)
    return written

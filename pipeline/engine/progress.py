"""What a person sees of a training: a bar on a terminal, else lines; and DVCLive's figures per epoch."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from pipeline.engine.run import Run

SAY_EVERY_S = 5.0
REFRESH_S = 0.2


class TrainingProgress:
    """Rows per second and the time left at most; early stopping may end it sooner.

    Args:
        run: `run.say` is told the lines.
        rows: of one epoch.
        max_epochs: of the training.
        done: epochs that a checkpoint has brought.
        console: where a bar is drawn if it is a terminal.
    """

    def __init__(self, run: Run, rows: int, max_epochs: int, done: int, console: Console | None = None) -> None:
        self.run, self.rows, self.max_epochs = run, rows, max_epochs
        self.epoch, self.in_epoch, self.seen, self.trained_s = done, 0, 0, 0.0
        self._resumed_at = self._since = time.perf_counter()
        self._said = self._drawn = self._since
        self._line = ""
        console = console or Console(stderr=True)
        self._bar = _bar(console) if console.is_terminal else None
        self._task = self._bar.add_task(run.name, total=rows * max_epochs, speed="") if self._bar else None

    def __enter__(self) -> TrainingProgress:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    @property
    def rows_per_s(self) -> float:
        """Of training alone, without validation."""
        return self.seen / max(self.trained_s, 1e-9)

    def start(self) -> None:
        """An epoch's training begins."""
        self._since, self.in_epoch = time.perf_counter(), 0

    def batch(self, rows: int) -> None:
        """Some rows have been handed to the device."""
        self.in_epoch += rows
        now = time.perf_counter()
        if now - self._drawn > REFRESH_S:
            self._drawn = now
            self._draw(now)

    def trained(self) -> None:
        """The epoch's training has ended on the device."""
        self.trained_s += time.perf_counter() - self._since
        self.seen += self.in_epoch
        self.in_epoch = 0
        self.epoch += 1

    def validated(self, entry: Mapping[str, float], *, last: bool) -> None:
        """An epoch is over; its losses."""
        self._line = f"train {entry['train_loss']:.4f}  validation {entry['validation_loss']:.4f}  "
        if last or (not self._bar and time.perf_counter() - self._said > SAY_EVERY_S):
            self._say(self.rows_per_s)

    def _draw(self, now: float) -> None:
        speed = (self.seen + self.in_epoch) / max(self.trained_s + now - self._since, 1e-9)
        if self._bar and self._task is not None:
            self._bar.update(self._task, completed=self.epoch * self.rows + self.in_epoch, speed=f"{speed:,.0f} rows/s")
        elif now - self._said > SAY_EVERY_S:
            self._say(speed)

    def _say(self, speed: float) -> None:
        self._said = time.perf_counter()
        done = self.epoch * self.rows + self.in_epoch
        left = max(0.0, (self.max_epochs * self.rows - done) / max(speed, 1e-9))
        share = f" {self.in_epoch / max(1, self.rows):.0%} of epoch {self.epoch + 1}" if self.in_epoch else ""
        self.run.say(
            f"epoch {self.epoch}/{self.max_epochs}{share}  {self._line}{speed:,.0f} rows/s  at most {left:.0f} s left"
        )


def _bar(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[speed]}"), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True)


class LiveFigures:
    """DVCLive's metrics.json and a table per figure in a folder; the same training leaves the same bytes.

    Without a folder, or where DVCLive cannot work (a git repository without a commit), it writes nothing.
    """

    def __init__(self, run: Run) -> None:
        self._live: Any = None
        if run.live is not None:
            self._open(run, run.live)

    def _open(self, run: Run, folder: Path) -> None:
        from dvclive.error import DvcLiveError  # a second to import: only where it is used
        from dvclive.live import Live
        from scmrepo.exceptions import SCMError

        try:
            # neither a DVC experiment, a dvc.yaml nor a report: the graph owns those
            self._live = Live(str(folder), save_dvc_exp=False, dvcyaml=None, report=None)
        except (DvcLiveError, SCMError, OSError) as error:
            run.say(f"no figures per epoch in {folder}: {error}")

    def log(self, entry: Mapping[str, float]) -> None:
        """The figures of one epoch; `train_loss` stands in `train/loss`."""
        if self._live is None:
            return
        self._live.step = int(entry["epoch"])
        for name, value in entry.items():
            if name != "epoch":
                place = {"train_loss": "train/loss", "validation_loss": "validation/loss"}.get(name, f"train/{name}")
                self._live.log_metric(place, value)
        self._live.make_summary()

    def close(self) -> None:
        """Write what is left."""
        if self._live is not None:
            with contextlib.suppress(OSError):
                self._live.end()

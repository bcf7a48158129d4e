"""Running one stage of the graph: a `dvc repro --single-item` in its own process group."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from pipeline.errors import StageFailed, UserError, printable

STAGE_TIMES = "HEARKEN_STAGE_TIMES"  # a file to which a stage may append {"stage": ..., "seconds": ...}
EXITED = re.compile(r"exited with (-?\d+)\s*$")
GRACE_SECONDS = 5.0  # between asking a stage to end and killing it
KEPT_LINES = 200

Log = Callable[[str], None]


class Outcome(StrEnum):
    """What happened to a stage in a build."""

    UNCHANGED = "unchanged"
    RAN = "ran"
    RESTORED = "restored"  # from the run-cache: the same inputs were built before, here or elsewhere
    TRAINED_ELSEWHERE = "trained on gpu"  # by a worker of the gpu pool, then restored here


@dataclass(frozen=True, kw_only=True)
class StageResult:
    """One row of a build's summary; `compute_seconds` is the stage's own time without DVC's, where it said it."""

    stage: str
    outcome: Outcome
    seconds: float = 0.0
    compute_seconds: float | None = None


def run_stage(
    folder: Path | str,
    stage: str,
    *,
    environment: Mapping[str, str],
    log: Log = print,
    detail: Log | None = None,
    pull: bool = False,
    group_file: Path | None = None,
    arguments: Sequence[str] = (),
) -> StageResult:
    """Bring one stage up to date and say what happened.

    Whatever ends this call early (a cancelled flow, an interrupt) ends the stage's whole process group too.

    Args:
        folder: holds dvc.yaml.
        stage: its name there (`train@pca`).
        environment: for DVC and the stage.
        log: gets the stage's progress lines.
        detail: gets every other line.
        pull: fetch missing inputs and cached results from the DVC remote.
        group_file: where to note the process group while it runs, for end_leftovers.
        arguments: more for `dvc repro`.

    Raises:
        UserError: the stage ended with exit code 2: a person's mistake, in its own words.
        StageFailed: it ended with any other error.
    """
    started = time.monotonic()
    times = Path(folder) / ".dvc" / "tmp" / "stage_times.jsonl"
    times.parent.mkdir(parents=True, exist_ok=True)
    times.unlink(missing_ok=True)
    command = ["dvc", "repro", "--single-item", *(["--pull"] if pull else []), *arguments, stage]
    child = dict(environment) | {STAGE_TIMES: str(times), "PYTHONUNBUFFERED": "1"}
    lines: list[str] = []
    with _process_group(command, Path(folder), child, group_file) as process:
        for printed in process.stdout or ():
            line = printable(printed.rstrip())  # names from data stand in it
            lines.append(line)
            del lines[:-KEPT_LINES]
            if line.startswith("progress"):
                log(f"{stage}: {line}")
            elif detail is not None and line:
                detail(f"{stage}: {line}")
        code = process.wait()
    if code:
        raise explain_failure(stage, code, lines)
    return StageResult(
        stage=stage,
        outcome=read_outcome(lines),
        seconds=time.monotonic() - started,
        compute_seconds=_read_compute_seconds(times),
    )


@contextlib.contextmanager
def _process_group(
    command: list[str], folder: Path, environment: Mapping[str, str], group_file: Path | None
) -> Iterator[subprocess.Popen[str]]:
    """A child in a group of its own, which does not outlive the block."""
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        if group_file is not None:
            group_file.parent.mkdir(parents=True, exist_ok=True)
            group_file.write_text(str(process.pid))
        yield process
    except BaseException:  # also prefect's TerminationSignal and KeyboardInterrupt: nobody else ends the group
        end_group(process)
        raise
    finally:
        if process.stdout is not None:
            process.stdout.close()
        if group_file is not None:
            group_file.unlink(missing_ok=True)


def end_group(process: subprocess.Popen[str]) -> None:
    """Ask the process group of a child to end, then kill what is left of it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(GRACE_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # also children that outlived their leader
    process.wait()


def read_outcome(lines: Sequence[str]) -> Outcome:
    """What `dvc repro` says that it did.

    >>> read_outcome(["Stage 'clean' is cached - skipping run, checking out outputs"])
    <Outcome.RESTORED: 'restored'>
    """
    if any(line.startswith("Running stage ") for line in lines):
        return Outcome.RAN
    if any("is cached - skipping run" in line for line in lines):
        return Outcome.RESTORED
    return Outcome.UNCHANGED


def explain_failure(stage: str, code: int, lines: Sequence[str]) -> UserError | StageFailed:
    """The error for a stage that failed, from what it printed.

    `dvc repro` itself ends with 255 whatever the stage's exit code was, which stands in its last message.

    >>> lines = ["error: bins: got 63, expected 64.", "ERROR: failed to reproduce 'ingest': ..., exited with 2"]
    >>> explain_failure("ingest", 255, lines)
    UserError('stage ingest: bins: got 63, expected 64.')
    """
    said = [line for line in lines if line.strip()]
    found = EXITED.search(said[-1]) if said else None
    own = int(found[1]) if found else code
    starts = [index for index, line in enumerate(said) if line.startswith("error: ")]
    if own == 2 and starts:
        message = [line for line in said[starts[-1] :] if not line.startswith("ERROR: ")]
        return UserError(f"stage {stage}: " + "\n".join(message).removeprefix("error: "))
    errors = [line for line in said if line.startswith("ERROR: ")]
    before = [line for line in said if not line.startswith("ERROR: ")]
    if found and before:  # the stage's own last words, not DVC's account of its command
        return StageFailed(stage, own, before[-1])
    return StageFailed(stage, own, (errors or said or [""])[-1].removeprefix("ERROR: "))


def _read_compute_seconds(times: Path) -> float | None:
    """The seconds that the stage itself took, where it wrote them down."""
    if not times.is_file():
        return None
    entries = [json.loads(line) for line in times.read_text().splitlines() if line.strip()]
    return sum(float(entry["seconds"]) for entry in entries) if entries else None

"""DVC experiments in a private clone: queued with their settings, run several at once, and what came of each.

The clone shares the DVC cache with builds, so stages that a search leaves as they are come from there. `dvc queue` has
processes of its own, which outlive ours unless they are ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

from flows.graph import read_graph, run_dvc
from flows.repository import run_git, snapshot_commit
from flows.settings import Settings
from flows.stages import explain_failure, run_stage
from flows.workspace import Workspace, override_params
from pipeline.errors import HearkenError, ParamsError, UserError, WorkspaceError
from pipeline.store import write_text

CLONE = "tune"
TARGET = "evaluate"  # figures stand after it; a search needs no release and no report
NOW = "now"  # the present settings
LOOK_SECONDS, LATEST_SECONDS = 1.0, 20.0  # between looks at the repository, and at the queue
WORKER_SECONDS = 10.0  # for workers without work to end by themselves
LINE = re.compile(r"^[0-9a-f]{7}\s+(?P<name>\S+)\s.*\s(?P<state>Queued|Running|Success|Failed)\s*$")
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One experiment: its name, state (queued, running, success, failed), settings in their sections, and its metrics.

    `metrics` holds the content of each metric file by the file's stem; `why` says what a failed one died of.
    """

    name: str
    state: str
    params: Mapping[str, Any]
    metrics: Mapping[str, Any] = field(default_factory=dict)
    why: str = ""

    def differs_from(self, other: Experiment) -> dict[str, Any]:
        """The settings that are not those of another one, as whole sections where their keys are not the same.

        >>> now = Experiment(name="now", state="success", params={"a": {"b": None, "c": {"d": 1, "e": 2}}})
        >>> one = Experiment(name="one", state="success", params={"a": {"b": {}, "c": {"d": 3, "e": 2}}})
        >>> one.differs_from(now)
        {'a.b': {}, 'a.c.d': 3}
        """
        return _different(self.params, other.params)

    def setting(self, key: str, default: Any = None) -> Any:
        """The value at a dotted name, or the default."""
        found = _at(self.params, key)
        return default if found is MISSING else found


MISSING = object()


def _different(mine: Mapping[str, Any], theirs: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in mine.items():
        other = theirs.get(key, MISSING)
        if isinstance(value, Mapping) and isinstance(other, Mapping) and value.keys() == other.keys():
            found |= _different(value, other, f"{prefix}{key}.")
        elif value != other:
            found[f"{prefix}{key}"] = value
    return found


def revision_of(settings: Settings) -> str:
    """The commit that a search starts from: the clone's, where the checkout's files are still the same.

    With uncommitted edits each snapshot is another commit, and the experiments of the last would be out of sight.
    """
    snapshot = snapshot_commit(settings.checkout)
    folder = settings.workspaces / CLONE
    if (folder / ".git").is_dir():
        tree = "{commit}^{{tree}}"
        theirs = run_git(folder, "rev-parse", "--verify", "--quiet", tree.format(commit="HEAD"))
        if theirs == run_git(settings.checkout, "rev-parse", tree.format(commit=snapshot)):
            return run_git(folder, "rev-parse", "HEAD")
    return snapshot


def keep_objects(workspace: Workspace) -> None:
    """Copy into the clone what it shares with the checkout, where nothing refers to a snapshot of uncommitted edits.

    Else the checkout's next `git gc` takes the commit away that all experiments stand on.
    """
    run_git(workspace.folder, "repack", "-a", "-d", "-q")


def check_settings(workspace: Workspace, tried: Sequence[Mapping[str, Any]]) -> list[str]:
    """The text of params.yaml for each combination, all of them checked before anything is queued.

    Raises:
        ParamsError: an unknown key, or a value that params.yaml may not hold.
    """
    path, texts = workspace.folder / "params.yaml", []
    before = path.read_text(encoding="utf-8")
    for one in tried:
        try:
            override_params(path, one)
            texts.append(path.read_text(encoding="utf-8"))
        except ParamsError as error:
            told = ", ".join(f"{key}={value}" for key, value in one.items())
            raise ParamsError(f"{told}: {error}") from None
        finally:
            write_text(path, before)
    return texts


def build_present(workspace: Workspace, say: Say) -> None:
    """Bring the clone up to date with its present settings: what experiments share is then made once.

    Raises:
        UserError: a stage ended with a person's mistake.
        StageFailed: it ended with another error.
    """
    graph = read_graph(workspace.folder, workspace.environment).restricted_to({TARGET})
    for stage in graph.order:
        run_stage(workspace.folder, stage, environment=workspace.environment, log=say, group_file=workspace.group_file)


def clear_queue(workspace: Workspace) -> int:
    """End what an earlier search left at work, and forget what waits or failed; how many there were."""
    standing = queue_of(workspace)
    left = sum(state in ("Queued", "Running") for state in standing.values())
    if left:
        stop_queue(workspace)
    if standing:
        run_dvc(workspace.folder, ["queue", "remove", "--all"], workspace.environment)
    return left


def stop_queue(workspace: Workspace) -> None:
    """End the queue's processes with what they run, and forget what waits."""
    environment = workspace.environment
    subprocess.run(
        ["dvc", "queue", "stop", "--kill"], cwd=workspace.folder, env=environment, check=False, capture_output=True
    )
    deadline = time.monotonic() + 60
    while "Running" in queue_of(workspace).values() and time.monotonic() < deadline:
        time.sleep(LOOK_SECONDS)
    end_orphans(workspace)
    run_dvc(workspace.folder, ["queue", "remove", "--queued"], environment)


def end_orphans(workspace: Workspace) -> list[int]:
    """Kill stages that outlived their experiment, and return their process ids: DVC ends its own process, not theirs.

    They work in the folders that DVC makes for experiments, where nobody else does while the clone is held.
    """
    ended = []
    for process in _processes_below(workspace.folder / ".dvc" / "tmp" / "exps"):
        with contextlib.suppress(psutil.Error):
            process.kill()
            ended.append(process.pid)
    return ended


def _processes_below(place: Path) -> list[psutil.Process]:
    """Other processes that work in a folder or below it."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if Path(process.cwd()).is_relative_to(place.resolve()) and process.pid != os.getpid():
                found.append(process)
    return found


def queue_of(workspace: Workspace) -> dict[str, str]:
    """What the queue holds: state by name."""
    text = run_dvc(workspace.folder, ["queue", "status"], workspace.environment)
    return {found["name"]: found["state"] for line in text.splitlines() if (found := LINE.match(line))}


def queue(workspace: Workspace, name: str, params_text: str) -> None:
    """Queue one experiment with these settings; the clone's params.yaml is left as it was."""
    path = workspace.folder / "params.yaml"
    before = path.read_text(encoding="utf-8")
    try:
        write_text(path, params_text)
        run_dvc(workspace.folder, ["exp", "run", "--queue", "--name", name, TARGET], workspace.environment)
    finally:
        write_text(path, before)


def run_queue(workspace: Workspace, names: Sequence[str], jobs: int, say: Say) -> None:
    """Run what is queued, `jobs` at once, until all are done; whatever ends this call early ends them too.

    Raises:
        HearkenError: the queue's processes ended before their work.
    """
    try:
        _start(workspace, jobs)
        _watch(workspace, names, jobs, say)
    except BaseException:
        stop_queue(workspace)
        raise
    finally:
        end_workers(workspace)


def end_workers(workspace: Workspace) -> None:
    """End the queue's workers once nothing is left to do: DVC's end by themselves soon, but not always."""
    _, left = psutil.wait_procs(_queue_workers(workspace), timeout=WORKER_SECONDS)
    for process in left:
        with contextlib.suppress(psutil.Error):
            process.kill()


def _queue_workers(workspace: Workspace) -> list[psutil.Process]:
    """DVC's processes that take experiments from the queue."""
    workers = []
    for process in _processes_below(workspace.folder):
        with contextlib.suppress(psutil.Error):
            if "queue-worker" in process.cmdline():
                workers.append(process)
    return workers


def _start(workspace: Workspace, jobs: int) -> None:
    # its workers keep our output open for as long as they live, so no pipe may wait for its end
    done = subprocess.run(
        ["dvc", "queue", "start", "--jobs", str(jobs)],
        cwd=workspace.folder,
        env=workspace.environment,
        check=False,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    if done.returncode:
        raise WorkspaceError(f"dvc queue start: got exit code {done.returncode}, expected 0, in {workspace.folder}.")


def _watch(workspace: Workspace, names: Sequence[str], jobs: int, say: Say) -> None:
    """Look at the repository's references often, which is cheap, and at the queue when they have changed."""
    told, seen, due, idle = set[str](), "", 0.0, 0
    while len(told) < len(names):
        references = run_git(workspace.folder, "for-each-ref", "refs/exps")
        if references == seen and time.monotonic() < due:
            time.sleep(LOOK_SECONDS)
            continue
        seen, due = references, time.monotonic() + LATEST_SECONDS
        standing = queue_of(workspace)
        for name in names:
            if name not in told and standing.get(name) in ("Success", "Failed"):
                told.add(name)
                say(f"{name}: {'done' if standing[name] == 'Success' else 'failed'} ({len(told)} of {len(names)})")
        left = [name for name in names if name not in told]
        at_work = "Running" in standing.values() and bool(_queue_workers(workspace))  # a killed one runs for ever
        idle = idle + 1 if left and not at_work else 0
        if idle == 3:
            _start(workspace, jobs)  # workers that went away
        elif idle > 6:
            raise HearkenError(f"dvc queue: got {len(left)} experiments that wait and no worker, expected one.")


def experiments(workspace: Workspace) -> list[Experiment]:
    """The present settings, as NOW, then every experiment that started from them, in the order of their names."""
    text = run_dvc(workspace.folder, ["exp", "show", "--json", "--hide-workspace"], workspace.environment)
    shown = json.loads(text[text.index("[") :])
    now = Experiment(
        name=NOW,
        state="success",
        params=_yaml(workspace.folder / "params.yaml"),
        metrics=_metrics_here(workspace),
    )
    found = [_experiment(each) for baseline in shown for each in baseline.get("experiments") or []]
    return [now, *sorted(found, key=lambda each: _natural(each.name))]


def _experiment(shown: Mapping[str, Any]) -> Experiment:
    last, executor = shown["revs"][0], shown.get("executor") or {}
    data = last.get("data") or {}
    params = ((data.get("params") or {}).get("params.yaml") or {}).get("data") or {}
    metrics = {Path(name).stem: each.get("data") for name, each in (data.get("metrics") or {}).items()}
    state = str(executor.get("state") or "success")
    log = (executor.get("local") or {}).get("log")
    return Experiment(
        name=str(shown.get("name") or last.get("name") or last["rev"][:7]),
        state=state,
        params=params,
        metrics={} if state != "success" else {name: value for name, value in metrics.items() if value is not None},
        why=_why(Path(log)) if state == "failed" and log else "",
    )


def _why(log: Path) -> str:
    """What a failed experiment said last."""
    if not log.is_file():
        return "no log is left of it"
    lines = [line.rstrip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return str(explain_failure("", 255, lines)).removeprefix("stage : ").split("\n")[0]


def _metrics_here(workspace: Workspace) -> dict[str, Any]:
    """The metric files of the clone itself, where they are."""
    stages = _yaml(workspace.folder / "dvc.yaml").get("stages") or {}
    listed = [metric for stage in stages.values() for metric in stage.get("metrics") or []]
    paths = [workspace.folder / (next(iter(each)) if isinstance(each, dict) else str(each)) for each in listed]
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in paths if path.is_file()}


def _yaml(path: Path) -> dict[str, Any]:
    found = yaml.safe_load(path.read_text(encoding="utf-8"))
    return found if isinstance(found, dict) else {}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted name.

    >>> _flat({"a": {"b": 1}, "c": [2]})
    {'a.b': 1, 'c': [2]}
    """
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def _natural(name: str) -> list[tuple[int, float, str]]:
    """For sorting: numbers by their size.

    >>> sorted(["latent-16", "latent-4"], key=_natural)
    ['latent-4', 'latent-16']
    """
    parts = re.split(r"(\d+(?:\.\d+)?)", name)
    return [(1, float(part), "") if part[:1].isdigit() else (0, 0.0, part) for part in parts if part]


def figure_of(experiment: Experiment, metric: str) -> float | None:
    """A figure of an experiment: `file:dotted.name`, or the dotted name alone where one file has it; None: null.

    Raises:
        UserError: no metric file has it, or several have.
    """
    value = _value_of(experiment, metric)[1]
    return None if value is None else float(value)


def figure_or_none(experiment: Experiment, metric: str) -> float | None:
    """As `figure_of`; None too where this experiment has no such figure, as one that names other detectors."""
    try:
        return figure_of(experiment, metric)
    except UserError:
        return None


def file_of(experiment: Experiment, metric: str) -> str:
    """The stem of the metric file that holds a figure.

    Raises:
        UserError: see `figure_of`.
    """
    return _value_of(experiment, metric)[0]


def _value_of(experiment: Experiment, metric: str) -> tuple[str, float | int | None]:
    stem, colon, dotted = metric.rpartition(":")
    wanted = {stem: experiment.metrics.get(stem)} if colon else dict(experiment.metrics)
    found = {name: value for name, each in wanted.items() if (value := _at(each, dotted)) is not MISSING}
    if not found:
        known = ", ".join(sorted(experiment.metrics)) or "none"
        like = _alike(experiment, dotted)
        raise UserError(f"--metric: got {metric}, expected a figure of a metric file ({known}){like}.")
    if len(found) > 1:
        either = " or ".join(f"{name}:{dotted}" for name in sorted(found))
        raise UserError(f"--metric: got {metric}, which several files have, expected {either}.")
    name, value = next(iter(found.items()))
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise UserError(f"--metric: got {metric}, which is {type(value).__name__}, expected a number.")
    return name, value


def _at(values: Any, dotted: str) -> Any:
    for name in dotted.split("."):
        if not isinstance(values, Mapping) or name not in values:
            return MISSING
        values = values[name]
    return values


def _alike(experiment: Experiment, dotted: str) -> str:
    """Figures whose last word is the same."""
    last = dotted.rsplit(".", 1)[-1]
    found = [
        f"{stem}:{name}"
        for stem, values in experiment.metrics.items()
        for name, value in _flat(values).items()
        if name.rsplit(".", 1)[-1] == last and isinstance(value, int | float)
    ]
    return f", such as {found[0]}" if found else ""

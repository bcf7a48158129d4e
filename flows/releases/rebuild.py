"""Making a release again from what its commit and its dvc.lock name, to see whether the same comes out.

A private clone at the release's commit gets the inputs by their hashes, from the DVC cache or remote; `calibrate` and
`release` run anew (with weights also `train`), without DVC's memory of earlier runs and without leaving any.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from flows.graph import Graph, read_graph, run_dvc
from flows.plan import RELEASE
from flows.registry import ReleaseRow
from flows.releases.described import Described, described
from flows.repository import LOCK
from flows.settings import Settings
from flows.stages import run_stage
from flows.workspace import Workspace, create_workspace, end_leftovers, held
from pipeline.detectors.base import MANIFEST, WEIGHTS
from pipeline.errors import ContractError, ReleaseError, WorkspaceError
from pipeline.moments import moment_of
from pipeline.store import read_json, sha256_file

NAME = "rebuild"  # of the private clone
ANEW = ("--force", "--no-run-cache", "--no-commit")  # of `dvc repro`: run it, whatever is known of it; keep nothing
Log = Callable[[str], None]


@dataclass(frozen=True)
class Compared:
    """One thing that was compared."""

    what: str
    then: str
    now: str

    @property
    def equal(self) -> bool:
        """Whether it came out the same."""
        return self.then == self.now


@dataclass(frozen=True)
class Rebuilt:
    """What came of a rebuild: how, what was compared, and what a person should know of differences."""

    release: str
    version: int
    how: str
    compared: tuple[Compared, ...]
    notes: tuple[str, ...] = field(default=())

    @property
    def equal(self) -> bool:
        """Whether all that was compared came out the same."""
        return all(each.equal for each in self.compared)


def rebuild(
    settings: Settings,
    row: ReleaseRow,
    *,
    weights: bool = False,
    data_set: Path | None = None,
    log: Log = lambda _: None,
) -> Rebuilt:
    """Make a release again and compare what comes out.

    Args:
        settings: the places.
        row: of the registry.
        weights: train its detectors anew too; otherwise its thresholds are made from its own weights.
        data_set: for a recalibrated release: what it was recalibrated with; None: what the flow keeps in the home.
        log: takes lines for people.

    Raises:
        ReleaseError: it cannot be rebuilt: no commit, no dvc.lock in it, a parent or data that are gone.
        StageFailed: a stage ended with an error.
    """
    known = described(settings, row)
    if known.manifest.get("recalibrated_from"):
        if weights:
            raise ReleaseError(
                f"release {known.name}: got --weights for a recalibrated release, whose weights are those of "
                f"{known.parents[0]}, expected that release."
            )
        return _recalibrate_again(settings, known, data_set)
    return _build_again(settings, known, weights, log)


def _build_again(settings: Settings, known: Described, weights: bool, log: Log) -> Rebuilt:
    if not known.row.commit:
        raise ReleaseError(f"release {known.name}: got no commit in the registry, expected the one that made it.")
    folder = settings.workspaces / NAME
    with held(settings, folder):
        end_leftovers(Workspace(folder=folder, commit="", origin=None, settings=settings))
        commit, origin = _clone(settings, known, folder)
        log(f"clone of {commit[:12]} from {origin}, in {folder}")
        workspace = Workspace(folder=folder, commit=commit, origin=origin, settings=settings)
        graph = read_graph(folder, workspace.environment)
        anew = stages_anew(graph, weights)
        _bring_inputs(workspace, graph, anew, known)
        for stage in anew:
            done = run_stage(
                folder,
                stage,
                environment=workspace.environment,
                log=log,
                group_file=workspace.group_file,
                arguments=ANEW,
            )
            log(f"{stage}: {done.outcome.value} in {done.seconds:.1f} s")
        compared = compare_folders(known.folder, folder / RELEASE, weights=weights)
        notes = device_notes(known.manifest, read_json(folder / RELEASE / MANIFEST), weights)
    ran = "training and calibration" if weights else "calibration"
    how = f"commit {commit[:12]}, {ran} run anew on the rows that its dvc.lock names"
    return Rebuilt(known.row.id, known.row.version, how, compared, tuple(notes))


def stages_anew(graph: Graph, weights: bool) -> list[str]:
    """The stages that run: calibrate and release, with weights also training; figures of evaluation are restored.

    >>> names = ("split", "train@pca", "calibrate", "evaluate", "release", "report")
    >>> stages_anew(Graph(names, {}), weights=True)
    ['train@pca', 'calibrate', 'release']
    """
    wanted = ("calibrate", "release")
    return [stage for stage in graph.order if stage in wanted or (weights and stage.startswith("train@"))]


def _clone(settings: Settings, known: Described, folder: Path) -> tuple[str, str]:
    """The release's commit from the repository, or from the private clone that built it, where its tag was refused."""
    clones = [
        str(each) for each in sorted(settings.workspaces.glob("*")) if each != folder and (each / ".git").is_dir()
    ]
    said = ""
    for origin in (settings.repository, *clones):
        try:
            commit = create_workspace(
                origin, known.row.commit, folder, settings.cache, settings.remote, keep_lock=False
            )
        except WorkspaceError as error:
            said = said or str(error)
            continue
        if not _has_release(folder):
            raise ReleaseError(
                f"release {known.name}: got a commit whose dvc.lock names no {RELEASE} ({commit[:12]}), expected one "
                "that a build in a private clone made: a build in a checkout commits nothing."
            )
        return commit, origin
    raise ReleaseError(
        f"release {known.name}: got no commit {known.row.commit[:12]} in {settings.repository} or a private clone, "
        f"expected the one that made it ({said})"
    )


def _has_release(folder: Path) -> bool:
    path = folder / LOCK
    if not path.is_file():
        return False
    stages: dict[str, Any] = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("stages", {})
    return any(str(out.get("path")) == str(RELEASE) for stage in stages.values() for out in stage.get("outs", []))


def _bring_inputs(workspace: Workspace, graph: Graph, anew: Sequence[str], known: Described) -> None:
    """What the stages read that they do not make themselves, by the hashes of dvc.lock."""
    needed = {parent for stage in anew for parent in graph.parents[stage]} - set(anew)
    targets = [stage for stage in graph.order if stage in needed]
    try:
        run_dvc(workspace.folder, ["checkout", "--force", *targets], workspace.environment)
    except WorkspaceError:
        try:
            run_dvc(workspace.folder, ["pull", "--force", *targets], workspace.environment)
        except WorkspaceError as error:
            raise ReleaseError(
                f"release {known.name}: got data that are neither in the DVC cache nor in the remote, expected what "
                f"its dvc.lock names ({error})"
            ) from None


def compare_folders(then: Path, now: Path, *, weights: bool) -> tuple[Compared, ...]:
    """Thresholds and policy by value, then every file by hash; weights that were not trained anew are left out."""
    found = thresholds_compared(read_json(then / "calibration.json"), read_json(now / "calibration.json"))
    names = {path.relative_to(each).as_posix() for each in (then, now) for path in each.rglob("*") if path.is_file()}
    for name in sorted(names):
        if not weights and name.startswith("detectors/"):
            continue
        pair = [sha256_file(each / name) if (each / name).is_file() else "no file" for each in (then, now)]
        kind = "weights" if name.endswith(WEIGHTS) and name.startswith("detectors/") else "file"
        found.append(Compared(f"{kind} {name}", *pair))
    return tuple(found)


def thresholds_compared(then: dict[str, Any], now: dict[str, Any]) -> list[Compared]:
    """Every tier of every detector to the last bit, and the policy."""
    found = []
    for detector in [*then["detectors"], *(name for name in now["detectors"] if name not in then["detectors"])]:
        for tier in ("low", "page"):
            pair = [each["detectors"].get(detector, {}).get(tier, {}).get("threshold") for each in (then, now)]
            if pair != [None, None]:
                found.append(
                    Compared(f"threshold {detector}, {tier}", *("none" if p is None else repr(p) for p in pair))
                )
    found.append(Compared("alert policy", *(repr(sorted((each.get("policy") or {}).items())) for each in (then, now))))
    return found


def device_notes(then: dict[str, Any], now: dict[str, Any], weights: bool) -> list[str]:
    """Why bytes may differ although nothing is wrong."""
    notes = []
    for key, what in (("device", "device"), ("threads", "threads"), ("precision", "precision")):
        if then.get(key) != now.get(key):
            trained = "Weights and last digits" if weights else "Last digits"
            notes.append(f"The {what} is {now.get(key)}, then it was {then.get(key)}: {trained} differ.")
    if then.get("inputs") != now.get("inputs"):
        notes.append("The rows are other ones than those that made the release.")
    return notes


def _recalibrate_again(settings: Settings, known: Described, data_set: Path | None) -> Rebuilt:
    """The parent recalibrated with the same rows, where they are still as they were."""
    from pipeline.params import CalibrateParams, ValidateParams
    from pipeline.recalibrate import recalibrate
    from pipeline.release import load_release

    figures = known.manifest["recalibration"]
    place = data_set or settings.recalibration
    for name, digest in figures["inputs"].items():
        path = place / name
        if not path.is_file() or sha256_file(path) != digest:
            got = "another file" if path.is_file() else "no file"
            raise ReleaseError(
                f"release {known.name}: got {got} {name} than it was recalibrated with in {place}, expected the same "
                "(--data-set); a data set that has grown since cannot make it again."
            )
    parent = load_release(settings.releases / known.parents[0], known.parents[0])
    params, validate = known.manifest["params"]["calibrate"], figures.get("validate") or {}
    since, until = (moment_of(int(us)) if us is not None else None for us in map(figures.get, ("since_us", "until_us")))
    with tempfile.TemporaryDirectory(prefix="hearken-") as folder:
        out = Path(folder) / "release"
        try:
            recalibrate(
                parent,
                place,
                out,
                ValidateParams.model_validate(validate),
                since=since,
                until=until,
                calibrate=CalibrateParams.model_validate(params),
            )
        except ContractError as error:
            raise ReleaseError(f"release {known.name}: {error}") from None
        compared = compare_folders(known.folder, out, weights=True)
        notes = device_notes(known.manifest, read_json(out / MANIFEST), weights=False)
    how = f"release {parent.id} recalibrated with {place}"
    return Rebuilt(known.row.id, known.row.version, how, compared, tuple(notes))

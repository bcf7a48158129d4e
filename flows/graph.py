"""The order of stages, read from dvc.yaml through DVC itself; it is written nowhere else."""

from __future__ import annotations

import heapq
import json
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import yaml

from pipeline.errors import WorkspaceError

EDGE = re.compile(r'^"(?P<before>[^"]+)" -> "(?P<after>[^"]+)";$')
GATHERING_STAGES = ("calibrate", "evaluate", "release")  # they read every detector's model, each named as a dependency


@dataclass(frozen=True)
class Graph:
    """Stages in an order in which they can run, and for each the stages that it reads from."""

    order: tuple[str, ...]
    parents: Mapping[str, frozenset[str]]

    def ancestors(self, stage: str) -> frozenset[str]:
        """Every stage that `stage` depends on, directly or not."""
        found: set[str] = set()
        waiting = list(self.parents[stage])
        while waiting:
            parent = waiting.pop()
            if parent not in found:
                found.add(parent)
                waiting.extend(self.parents[parent])
        return frozenset(found)

    def inputs_of(self, stages: Iterable[str]) -> tuple[str, ...]:
        """The stages whose outputs these read, in order.

        >>> graph = Graph(("a", "b", "c"), {"a": frozenset(), "b": frozenset("a"), "c": frozenset("ab")})
        >>> graph.inputs_of(["c"])
        ('a', 'b')
        """
        parents = frozenset[str]().union(*(self.parents[name] for name in stages))
        return tuple(name for name in self.order if name in parents)

    def restricted_to(self, targets: Iterable[str]) -> Graph:
        """Only the targets and what they depend on; the whole graph where it has none of them.

        >>> graph = Graph(("a", "b", "c"), {"a": frozenset(), "b": frozenset("a"), "c": frozenset()})
        >>> graph.restricted_to({"b"}).order
        ('a', 'b')
        """
        targets = set(targets) & set(self.order)
        if not targets:
            return self
        needed = targets.union(*(self.ancestors(name) for name in targets))
        order = tuple(name for name in self.order if name in needed)
        return Graph(order, {name: self.parents[name] for name in order})

    def outdated(self, changed: Iterable[str]) -> tuple[str, ...]:
        """The changed stages and all that depend on them, in order.

        >>> graph = Graph(("a", "b", "c"), {"a": frozenset(), "b": frozenset("a"), "c": frozenset()})
        >>> graph.outdated({"a"})
        ('a', 'b')
        """
        changed = set(changed)
        return tuple(name for name in self.order if name in changed or self.ancestors(name) & changed)


def sort_stages(names: Sequence[str], edges: Iterable[tuple[str, str]]) -> Graph:
    """Order stages so that each comes after its parents; ties in the order of `names`.

    Raises:
        WorkspaceError: the edges form a circle.

    >>> sort_stages(["report", "clean", "ingest"], [("ingest", "clean"), ("clean", "report")]).order
    ('ingest', 'clean', 'report')
    """
    parents: dict[str, set[str]] = {name: set() for name in names}
    for before, after in edges:
        if before in parents and after in parents:  # others are files tracked by `dvc add`: nothing to run
            parents[after].add(before)
    place = {name: index for index, name in enumerate(names)}
    sorter = TopologicalSorter(parents)
    try:
        sorter.prepare()
    except CycleError as error:
        raise WorkspaceError(f"dvc.yaml: got a circle of stages ({error.args[1]}), expected none.") from None
    order: list[str] = []
    ready = [place[name] for name in sorter.get_ready()]
    heapq.heapify(ready)
    while ready:
        name = names[heapq.heappop(ready)]
        order.append(name)
        sorter.done(name)
        for following in sorter.get_ready():
            heapq.heappush(ready, place[following])
    return Graph(tuple(order), {name: frozenset(before) for name, before in parents.items()})


def read_graph(folder: Path | str, environment: Mapping[str, str] | None = None) -> Graph:
    """The graph of the dvc.yaml in `folder`.

    Raises:
        WorkspaceError: no DVC repository, or a dvc.yaml that DVC refuses.
    """
    names = [
        line for line in run_dvc(folder, ["stage", "list", "--all", "--name-only"], environment).splitlines() if line
    ]
    dot = run_dvc(folder, ["dag", "--dot"], environment)
    edges = [(found["before"], found["after"]) for line in dot.splitlines() if (found := EDGE.match(line.strip()))]
    return sort_stages(names, edges)


def changed_stages(folder: Path | str, environment: Mapping[str, str] | None = None) -> frozenset[str]:
    """Stages whose command, settings, inputs or outputs differ from dvc.lock; see `dvc status`."""
    text = run_dvc(folder, ["status", "--json"], environment)
    return frozenset(json.loads(text[text.index("{") :]))


def check_detectors(folder: Path | str, detectors: Sequence[str]) -> None:
    """Check that the stages that gather models name exactly the detectors of params.yaml.

    DVC has no "all items of a matrix" dependency, and with their common folder as one, a stage would run happily on an
    incomplete or outdated set of models.

    Raises:
        WorkspaceError: one is missing or superfluous.
    """
    path = Path(folder) / "dvc.yaml"
    try:
        stages = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("stages", {})
    except (OSError, yaml.YAMLError) as error:
        raise WorkspaceError(f"dvc.yaml: got {error}, expected a readable graph, in {folder}.") from None
    for stage in GATHERING_STAGES:
        named = [str(name) for name in stages.get(stage, {}).get("deps", []) if str(name).startswith("data/models")]
        found = sorted(_detector_of(name, detectors) for name in named)
        if stage in stages and found != sorted(detectors):
            got, expected = ", ".join(found) or "none", ", ".join(sorted(detectors))
            raise WorkspaceError(
                f"models among the deps of stage {stage}: got {got}, expected exactly one per detector of params.yaml "
                f"({expected}), in {path}."
            )


def _detector_of(dependency: str, detectors: Sequence[str]) -> str:
    """`data/models/pca` or `data/models/${detectors[2]}` -> the detector's name."""
    found = re.fullmatch(r"data/models/\$\{detectors\[(\d+)\]\}", dependency)
    if not found:
        return dependency.removeprefix("data/models/")
    index = int(found[1])
    return detectors[index] if index < len(detectors) else f"detectors[{index}]"


def run_dvc(folder: Path | str, arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
    """Run a short DVC command that only reads or moves files, and return what it printed.

    Raises:
        WorkspaceError: it failed; with what DVC said.
    """
    result = subprocess.run(
        ["dvc", *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if result.returncode:
        said = [line.strip() for line in (result.stderr or result.stdout).splitlines() if line.strip()]
        errors = [line.removeprefix("ERROR: ") for line in said if line.startswith("ERROR")] or said[:6]
        raise WorkspaceError(f"dvc {' '.join(arguments)}: got {'; '.join(errors)}, expected success, in {folder}.")
    return result.stdout

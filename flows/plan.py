"""What a build has to do; without Prefect, so that a build with nothing to do costs no server."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from flows.graph import Graph, changed_stages, check_detectors, read_graph
from flows.workspace import Workspace
from pipeline.params import NEURAL_DETECTORS, Params, load_params

TARGETS = ("release", "report")  # what a build is for; without them, every stage
RELEASE = Path("data/release")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The settings and graph of a workspace, and its stages that are out of date, in order."""

    params: Params
    graph: Graph
    outdated: tuple[str, ...]

    @property
    def neural(self) -> tuple[str, ...]:
        """The outdated stages that train a neural detector."""
        names = {f"train@{name}" for name in NEURAL_DETECTORS}
        return tuple(stage for stage in self.outdated if stage in names)

    @property
    def inputs_of_training(self) -> tuple[str, ...]:
        """Stages whose outputs the neural detectors read."""
        return self.graph.inputs_of(self.neural)


def make_plan(workspace: Workspace) -> Plan:
    """Read params.yaml, dvc.yaml and dvc.lock of a workspace.

    Raises:
        UserError: one of them is wrong, or they do not agree.
    """
    params = load_params(workspace.folder / "params.yaml")
    check_detectors(workspace.folder, params.detectors)
    graph = read_graph(workspace.folder, workspace.environment).restricted_to(TARGETS)
    outdated = graph.outdated(changed_stages(workspace.folder, workspace.environment))
    return Plan(params=params, graph=graph, outdated=outdated)

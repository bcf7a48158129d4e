"""The order of stages comes from dvc.yaml, and dvc.yaml agrees with params.yaml and with what the stages import."""

from __future__ import annotations

import ast
import os
import subprocess
from pathlib import Path

import pytest
import yaml

from flows.graph import changed_stages, check_detectors, read_graph, run_dvc, sort_stages
from flows.settings import Settings, child_environment
from pipeline.errors import WorkspaceError
from pipeline.params import load_params

ROOT = Path(__file__).parents[1]

TOY = """\
stages:
  report:
    cmd: cat gathered > report
    deps: [gathered]
    outs: [report]
  gather:
    cmd: cat data/models/a data/models/b > gathered
    deps: [data/models/a, data/models/b]
    outs: [gathered]
  train:
    matrix: {detector: "${detectors}"}
    cmd: mkdir -p data/models && cp raw data/models/${item.detector}
    deps: [raw]
    params: ["sizes.${item.detector}"]
    outs: ["data/models/${item.detector}"]
  load:
    cmd: echo 1 > raw
    outs: [raw]
"""


@pytest.fixture
def toy(tmp_path):
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc" / "config").write_text("[core]\n    analytics = false\n")
    (tmp_path / "dvc.yaml").write_text(TOY)
    (tmp_path / "params.yaml").write_text("detectors: [a, b]\nsizes: {a: 1, b: 1}\n")
    return tmp_path


@pytest.fixture
def environment(tmp_path):
    return child_environment(Settings.of(tmp_path, {}))


def test_order_and_edges_come_from_dvc_yaml(toy, environment):
    graph = read_graph(toy, environment)
    assert graph.order == ("load", "train@a", "train@b", "gather", "report")
    assert graph.parents["gather"] == {"train@a", "train@b"}
    assert graph.ancestors("report") == {"load", "train@a", "train@b", "gather"}
    assert graph.outdated({"train@b"}) == ("train@b", "gather", "report")


def test_changed_stages_follow_a_parameter_of_one_item(toy, environment):
    assert changed_stages(toy, environment) == {"load", "train@a", "train@b", "gather", "report"}
    subprocess.run(["dvc", "repro", "-q"], cwd=toy, env=environment, check=True)
    assert changed_stages(toy, environment) == set()
    (toy / "params.yaml").write_text("detectors: [a, b]\nsizes: {a: 1, b: 2}\n")
    assert changed_stages(toy, environment) == {"train@b"}


def test_a_broken_graph_is_one_message(toy, environment):
    (toy / "dvc.yaml").write_text("stages: {load: {outs: [raw]}}\n")
    with pytest.raises(WorkspaceError, match=r"dvc dag --dot: got .*dvc.yaml.* expected success"):
        read_graph(toy, environment)


def test_a_circle_is_named():
    with pytest.raises(WorkspaceError, match="circle of stages"):
        sort_stages(["a", "b"], [("a", "b"), ("b", "a")])


def test_files_tracked_by_dvc_add_are_no_stages():
    assert sort_stages(["a"], [("raw.dvc", "a")]).order == ("a",)


@pytest.mark.parametrize(
    ("deps", "got"),
    [
        (["data/models/pca"], "got pca, expected"),
        (["data/models/pca", "data/models/vae", "data/models/old"], "old"),
        (["data/models"], "got data/models, expected"),
        (["data/models/${detectors[0]}", "data/models/${detectors[2]}"], r"detectors\[2\]"),
    ],
)
def test_a_missing_or_superfluous_detector_is_refused(tmp_path, deps, got):
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"evaluate": {"cmd": "x", "deps": deps}}}))
    with pytest.raises(WorkspaceError, match=got):
        check_detectors(tmp_path, ["pca", "vae"])


def test_templated_and_plain_detectors_are_accepted(tmp_path):
    deps = ["data/raw", "data/models/${detectors[1]}", "data/models/pca"]
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"evaluate": {"cmd": "x", "deps": deps}}}))
    check_detectors(tmp_path, ["pca", "vae"])


def test_dvc_failure_says_what_dvc_said(tmp_path, environment):
    with pytest.raises(WorkspaceError, match="not inside of a DVC repository"):
        run_dvc(tmp_path, ["status"], environment)


def test_our_graph_names_every_detector_of_params():
    check_detectors(ROOT, load_params(ROOT / "params.yaml").detectors)


def test_our_graph_is_ordered_from_simulate_to_report(environment):
    graph = read_graph(ROOT, environment)
    assert graph.order[0] == "simulate"
    assert graph.order[-1] == "report"
    assert {stage for stage in graph.order if stage.startswith("train@")} == {
        f"train@{name}" for name in load_params(ROOT / "params.yaml").detectors
    }


def _files_of(name: str) -> list[Path]:
    """The file of a module, or of a package that is imported or run."""
    place = ROOT / name.replace(".", os.sep)
    candidates = [place.with_suffix(".py"), place / "__init__.py", place / "__main__.py"]
    return [path for path in candidates if path.is_file()]


def _imported(stage: str) -> set[Path]:
    """Our own modules that a stage imports, itself included, followed to the end."""
    found, waiting = set(), _files_of(f"pipeline.{stage}")
    assert waiting, f"no module for stage {stage}"
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found.add(path)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            for name in names:
                if name.split(".")[0] == "pipeline":
                    waiting += _files_of(name)
    return found


def test_a_stage_depends_on_every_module_that_it_imports():
    missing = {}
    for stage, definition in yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].items():
        deps = {ROOT / str(name) for name in definition["deps"]}
        needed = _imported(stage) - {ROOT / "pipeline" / "__init__.py"}
        lacking = {str(path.relative_to(ROOT)) for path in needed if not deps & {path, *path.parents}}
        if lacking:
            missing[stage] = lacking
    assert missing == {}

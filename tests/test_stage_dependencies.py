"""A stage depends on every module of ours that it imports, however deep: else DVC would not see a changed helper."""

import ast
from pathlib import Path

import pytest
import yaml

from pipeline.params import load_params

ROOT = Path(__file__).resolve().parent.parent
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]


def module_file(name: str) -> Path | None:
    path = ROOT / Path(*name.split("."))
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


def imported(path: Path) -> set[Path]:
    """Files of the pipeline that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        found |= {file for name in names if name.startswith("pipeline.") and (file := module_file(name))}
    return found


def closure(stage: str) -> set[str]:
    """Everything that `python -m pipeline.<stage>` imports of the pipeline, packages as a whole."""
    first = module_file(f"pipeline.{stage}")
    assert first is not None
    folder = first.parent if first.name == "__init__.py" else None
    seen, waiting = set(), [*(folder.rglob("*.py") if folder else [first])]
    while waiting:
        path = waiting.pop()
        if path not in seen:
            seen.add(path)
            waiting += imported(path)
    names = {path.relative_to(ROOT).as_posix() for path in seen}
    packages = {"/".join(name.split("/")[:2]) for name in names if name.count("/") > 1}
    return packages | {name for name in names if name.count("/") == 1}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_names_every_module_it_imports(stage: str) -> None:
    listed = {dependency for dependency in STAGES[stage]["deps"] if dependency.startswith("pipeline/")}
    modules = {name for name in listed if name.endswith(".py") or (ROOT / name).is_dir()}
    assert modules == closure(stage)


@pytest.mark.parametrize("stage", ["calibrate", "evaluate", "release"])
def test_the_stages_after_training_name_every_detector(stage: str) -> None:
    listed = {Path(dep).name for dep in STAGES[stage]["deps"] if dep.startswith("data/models/")}
    assert listed == set(load_params(ROOT / "params.yaml").detectors)


def test_one_word_per_stage() -> None:
    for stage, settings in STAGES.items():
        assert settings["cmd"].startswith(f"python -m pipeline.{stage}")
        assert module_file(f"pipeline.{stage}") is not None

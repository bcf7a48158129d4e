"""Layers point one way, and heavy libraries have one door each."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ONLY_IN = {
    "great_expectations": {"pipeline/expectations.py"},
    "evidently": {"pipeline/drift/evidently_page.py"},
    "dvclive": {"pipeline/engine/progress.py"},
    "onnx": {"pipeline/onnx_export.py", "pipeline/detectors/tree_ensemble.py"},
    "apprise": {"flows/service/delivery.py"},
    "prometheus_client": {"flows/service/metrics.py", "flows/status_command.py"},
    "onnxruntime": {"pipeline/onnx_export.py", "pipeline/detectors/tree_ensemble.py"},
}


def imports_of(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def modules(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("path", modules("pipeline"), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_pipeline_knows_nothing_of_prefect_or_flows(path: Path) -> None:
    roots = {name.split(".")[0] for name in imports_of(path)}
    assert not roots & {"prefect", "flows", "sqlalchemy", "alembic", "typer"}


@pytest.mark.parametrize("path", modules("flows/service"), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_service_knows_nothing_of_prefect_or_the_command_line(path: Path) -> None:
    roots = {name.split(".")[0] for name in imports_of(path)}
    assert not roots & {"prefect", "prefect_dask", "dask", "distributed", "typer", "rich"}


@pytest.mark.parametrize("library", ONLY_IN)
def test_a_heavy_library_has_one_door(library: str) -> None:
    users = {
        path.relative_to(ROOT).as_posix()
        for folder in ("pipeline", "flows")
        for path in modules(folder)
        if library in {name.split(".")[0] for name in imports_of(path)}
    }
    assert users == ONLY_IN[library]


def test_every_error_stands_in_the_tree_or_is_a_signal_that_it_names() -> None:
    defined, classes = {"Exception", "OSError"}, []
    for folder in ("pipeline", "flows"):
        for path in modules(folder):
            classes += [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ClassDef)]
    more = True
    while more:
        known = {node.name for node in classes if defined & {ast.unparse(base) for base in node.bases}}
        more, defined = bool(known - defined), defined | known
    text = ast.get_docstring(ast.parse((ROOT / "pipeline/errors.py").read_text())) or ""
    assert {name for name in defined if name not in text} == {"Exception", "OSError"}


def test_only_what_judges_reads_the_truth_of_a_simulation() -> None:
    paths = {path.relative_to(ROOT).as_posix(): path for folder in ("pipeline", "flows") for path in modules(folder)}
    readers = {name for name, path in paths.items() if "pipeline.evaluate.read_truth" in imports_of(path)}
    assert readers == {"pipeline/what_if_sources.py"}
    # simulate writes it, ingest carries it along unread
    named = {name for name, path in paths.items() if '"truth.parquet"' in path.read_text()}
    assert named == {"pipeline/simulate.py", "pipeline/ingest.py", "pipeline/evaluate.py"}
    for sentence in ((ROOT / "docs/data.md").read_text(), (ROOT / "pipeline/evaluate.py").read_text()):
        assert "`what_if_sources`" in sentence

"""Which folder, settings and installation a command works with, by where it is called."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from flows.checkout import checkout_above, chosen_params, params_file, work_folder
from pipeline.errors import ParamsError, WorkspaceError
from pipeline.params import Params

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def below(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder two below a checkout, and the current one."""
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    (tmp_path / "params.yaml").write_text("seed: 77\n")
    folder = tmp_path / "notes/today"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    return folder


def test_settings_are_those_given_or_here_or_of_the_checkout_above_or_built_in(
    below: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert checkout_above() == work_folder() == tmp_path
    assert chosen_params().seed == 77
    (below / "other.yaml").write_text("seed: 78\n")
    assert chosen_params(Path("other.yaml")).seed == 78
    (below / "params.yaml").write_text("seed: 79\n")  # a folder with settings of its own
    assert (chosen_params().seed, work_folder()) == (79, Path())
    (tmp_path / "dvc.yaml").unlink()
    monkeypatch.chdir(tmp_path / "notes")
    assert (params_file(None), chosen_params(), work_folder()) == (None, Params(), Path())
    with pytest.raises(WorkspaceError, match=r"expected a folder with dvc\.yaml and params\.yaml, or one below it"):
        checkout_above()


@pytest.mark.parametrize("name", ["params.yaml", "none.yaml"])
def test_settings_that_are_asked_for_must_be_there(below: Path, name: str) -> None:
    assert not (below / name).exists()
    with pytest.raises(ParamsError, match=f"{name}: got no readable file"):
        chosen_params(Path(name))


@pytest.mark.parametrize(
    "arguments",
    [
        ["simulate", "--out", "out"],
        ["check", "plant"],
        ["ingest", "plant", "--out", "out"],
        ["backtest", "plant", "--out", "out"],
        ["what-if"],
        ["recalibrate", "v1", "--data-set", "raw", "--out", "new"],
        ["quarantine", "list"],
        ["quarantine", "release", "--machine", "a"],
    ],
)
def test_a_command_below_a_checkout_reads_its_settings(
    below: Path, tmp_path: Path, hearken: Run, arguments: list[str]
) -> None:
    (tmp_path / "params.yaml").write_text("oracle: 1\n")
    code, out, err = hearken(arguments[0], below, *arguments[1:])
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert "oracle" in err
    assert not [path for path in below.iterdir() if path.name != "plant"]


@pytest.mark.parametrize(
    ("arguments", "place"),
    [
        (["what-if"], "data/evaluation"),
        (["quarantine", "list"], "data/status/validate.parquet"),
        (["quarantine", "release", "--machine", "a"], "data/demo"),
    ],
)
def test_a_command_below_a_checkout_looks_for_its_data(
    below: Path, tmp_path: Path, hearken: Run, arguments: list[str], place: str
) -> None:
    code, _, err = hearken(arguments[0], below, *arguments[1:])
    assert (code, err.count("\n")) == (2, 1)
    assert str(tmp_path / place) in err

"""A release made again from what its commit names: a toy graph through real git and DVC, and (slow) a real build."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from small_fleet import SMALL_PARAMS

from flows import registry
from flows.database import open_database
from flows.registry import ReleaseRow, find_release, list_releases
from flows.releases.described import flat
from flows.releases.rebuild import rebuild
from flows.repository import commit_build, run_git, tag_release
from flows.settings import QUIET, Settings, child_environment
from flows.workspace import open_workspace, override_params
from pipeline.errors import ReleaseError
from pipeline.ingest import ingest
from pipeline.params import load_params
from pipeline.recalibrate import recalibrate
from pipeline.release import load_release
from pipeline.simulate import simulate

ROOT = Path(__file__).parents[1]
DVC_YAML = """\
stages:
  ingest:
    cmd: python step.py ingest
    deps: [step.py]
    outs: [data/raw]
  train:
    matrix: {detector: [pca, vae]}
    cmd: python step.py train ${item.detector}
    deps: [data/raw, step.py]
    outs: ["data/models/${item.detector}"]
  calibrate:
    cmd: python step.py calibrate
    deps: [data/raw, data/models/pca, data/models/vae, step.py]
    outs: [data/calibration]
  evaluate:
    cmd: python step.py evaluate
    deps: [data/calibration, step.py]
    metrics: [metrics/evaluation.json]
  release:
    cmd: python step.py release
    deps: [data/models/pca, data/models/vae, data/calibration, metrics/evaluation.json, step.py]
    outs: [data/release]
"""
STEP = """\
import json, os, pathlib, shutil, sys
name, drawn = sys.argv[1], os.environ.get("TOY_DIFFERS") == sys.argv[1]
with open(os.environ["TOY_RAN"], "a") as ran:
    ran.write(" ".join(sys.argv[1:]) + " ")
def put(path, text):
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    pathlib.Path(path).write_text(text)
raw = pathlib.Path("data/raw/rows.txt")
if name == "ingest":
    put(raw, "1 2 3")
elif name == "train":
    put(f"data/models/{sys.argv[2]}/weights.safetensors", sys.argv[2] + raw.read_text() + ("!" if drawn else ""))
elif name == "calibrate":
    weights = "".join(path.read_text() for path in sorted(pathlib.Path("data/models").rglob("*.safetensors")))
    tiers = {tier: {"threshold": len(weights) + level + drawn} for level, tier in ((0.1, "low"), (0.3, "page"))}
    put("data/calibration/calibration.json", json.dumps({"detectors": {"pca": tiers}, "policy": {"k": 3}}))
elif name == "evaluate":
    put("metrics/evaluation.json", "{}")
else:
    for model in ("pca", "vae"):
        weights = pathlib.Path(f"data/models/{model}/weights.safetensors").read_text()
        put(f"data/release/detectors/{model}/weights.safetensors", weights)
    shutil.copyfile("data/calibration/calibration.json", "data/release/calibration.json")
    put("data/release/manifest.json", json.dumps({"device": "cpu", "threads": 2, "metrics": {}}))
"""


class Toy:
    """A repository with a toy graph, and builds of it in a private clone, as the build flow does them."""

    def __init__(self, folder: Path) -> None:
        self.checkout = folder / "checkout"
        (self.checkout / ".dvc").mkdir(parents=True)
        run_git(self.checkout, "init", "-q", "-b", "main")
        config = "[core]\n    analytics = false\n    remote = plant\n['remote \"plant\"']\n    url = x\n"
        for name, text in (
            (".dvc/config", config),
            ("dvc.yaml", DVC_YAML),
            ("params.yaml", "seed: 7\n"),
            ("step.py", STEP),
            (".gitignore", ".hearken/\n/data/\n/metrics/\n"),
        ):
            (self.checkout / name).write_text(text)
        self.commit("toy")
        self.settings = Settings.of(self.checkout, {})
        self.engine = open_database(self.settings.database_url)

    def commit(self, message: str) -> None:
        run_git(self.checkout, "add", "-A")
        run_git(self.checkout, "commit", "-q", "-m", message)

    row: ReleaseRow

    def build(self) -> ReleaseRow:
        with open_workspace(self.settings, clone=True) as workspace:
            for command in (["repro", "-q"], ["push", "-q", "--run-cache"]):
                subprocess.run(["dvc", *command], cwd=workspace.folder, env=workspace.environment, check=True)
            branch = "build/a"
            commit = commit_build(workspace.folder, branch, "built")
            number, _ = tag_release(workspace.folder, 1, "release")
            place, release = self.settings.releases, workspace.folder / "data/release"
            return registry.register_release(self.engine, place, release, commit=commit, branch=branch, version=number)

    def ran(self) -> str:
        path = Path(os.environ["TOY_RAN"])
        text = path.read_text() if path.exists() else ""
        path.unlink(missing_ok=True)
        return text.strip()


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Toy]:
    """A build whose code has moved on since."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("HEARKEN_", "GIT_"))]:
            if "TEST" not in name and name != "HEARKEN_REFUSED_CONNECTIONS":
                patch.delenv(name)
        folder = tmp_path_factory.mktemp("toy")
        patch.setenv("TOY_RAN", str(folder / "ran"))
        made = Toy(folder)
        made.row = made.build()
        (made.checkout / "step.py").write_text("the code has moved on")
        made.commit("later")
        yield made
        made.engine.dispose()


def files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.server
def test_thresholds_and_weights_come_out_again_and_nothing_is_remembered(toy, hearken):
    toy.ran()
    cache, before = toy.settings.cache, files_of(toy.settings.cache)
    found = rebuild(toy.settings, toy.row)
    assert found.equal
    assert toy.ran() == "calibrate release"
    assert [each.what for each in found.compared] == [
        "threshold pca, low",
        "threshold pca, page",
        "alert policy",
        "file calibration.json",
        "file manifest.json",
    ]
    code, said, _ = hearken("releases", toy.checkout, "rebuild", "v1", "--weights", "--json")
    told = json.loads(said)
    assert (code, told["equal"], len(told["compared"])) == (0, True, 7)
    assert toy.ran() == "train pca train vae calibrate release"
    assert files_of(cache) == before  # neither objects nor run-cache: the next build must not restore from a rebuild


@pytest.mark.server
def test_what_comes_out_otherwise_is_told_with_exit_code_1(toy, hearken, monkeypatch):
    monkeypatch.setenv("TOY_DIFFERS", "train")
    code, said, _ = hearken("releases", toy.checkout, "rebuild", "v1", "--weights", "--json")
    told = json.loads(said)
    assert (code, told["equal"]) == (1, False)
    assert [each["what"] for each in told["compared"] if each["then"] != each["now"]] == [
        "threshold pca, low",
        "threshold pca, page",
        "file calibration.json",
        "weights detectors/pca/weights.safetensors",
        "weights detectors/vae/weights.safetensors",
    ]
    assert [row.id for row in list_releases(toy.engine)] == [toy.row.id]


@pytest.mark.slow
def test_data_come_from_the_remote_and_without_it_that_is_told(toy, tmp_path):
    elsewhere = dataclasses.replace(toy.settings, home=tmp_path / "home")
    shutil.copytree(toy.settings.releases, elsewhere.releases)
    nowhere = dataclasses.replace(elsewhere, remote=str(tmp_path / "none"))
    with pytest.raises(ReleaseError, match="got data that are neither in the DVC cache nor in the remote"):
        rebuild(nowhere, toy.row)
    assert rebuild(elsewhere, toy.row).equal


@pytest.mark.slow
def test_a_commit_whose_tag_was_refused_is_found_in_the_clone_that_built_it(toy, tmp_path):
    run_git(toy.checkout, "tag", "-d", "release/v1")
    run_git(toy.checkout, "gc", "--quiet", "--prune=now")
    shutil.rmtree(toy.settings.workspaces / "rebuild", ignore_errors=True)
    assert rebuild(toy.settings, toy.row).equal
    elsewhere = dataclasses.replace(toy.settings, home=tmp_path / "home")
    shutil.copytree(toy.settings.releases, elsewhere.releases)
    with pytest.raises(ReleaseError, match=rf"got no commit {toy.row.commit[:12]} in"):
        rebuild(elsewhere, toy.row)


@pytest.mark.server
def test_a_release_without_a_commit_or_without_its_lock_cannot_be_rebuilt(toy):
    row = find_release(toy.engine, 1)
    head = run_git(toy.checkout, "rev-parse", "HEAD")
    for commit, says in (("", "got no commit in the registry"), (head, "whose dvc.lock names no data/release")):
        row.commit = commit
        with pytest.raises(ReleaseError, match=says):
            rebuild(toy.settings, row)


def test_a_recalibrated_release_is_recalibrated_again_while_its_rows_are_as_they_were(built, tmp_path):
    params = load_params(built / "params.yaml")
    simulate(params.simulate, tmp_path / "landing", from_day=40, days=6)
    share = {"tune_share": params.split.tune_failure_share, "unseen_share": params.split.unseen_machine_share}
    settings = Settings.of(tmp_path, {"HEARKEN_HOME": str(tmp_path / "home")})
    data = settings.recalibration
    ingest(tmp_path / "landing", data, params.ingest, horizon_hours=48.0, **share)
    engine = open_database(settings.database_url)
    parent = registry.register_release(engine, settings.releases, built / "data/release", commit="abc")
    release = load_release(settings.releases / parent.id, parent.id)
    made = recalibrate(release, data, tmp_path / "made", params.validate_)
    row = registry.register_release(engine, settings.releases, made.folder, commit="abc")
    found = rebuild(settings, row)
    assert found.equal
    assert found.notes == ()
    assert any(each.what == "threshold ensemble, page" for each in found.compared)
    with pytest.raises(ReleaseError, match="got --weights for a recalibrated release"):
        rebuild(settings, row, weights=True)
    simulate(params.simulate, tmp_path / "landing", from_day=46, days=1)
    ingest(tmp_path / "landing", data, params.ingest, horizon_hours=48.0, **share)
    with pytest.raises(ReleaseError, match=r"got another file snapshot\.json than it was recalibrated with"):
        rebuild(settings, row, data_set=data)
    with pytest.raises(ReleaseError, match=r"got no file \w+\.\w+ than it was"):
        rebuild(settings, row, data_set=tmp_path)
    engine.dispose()


@pytest.mark.slow
def test_a_real_build_comes_out_again_byte_for_byte(tmp_path):
    """Every stage through DVC, in a private clone; then again, with its weights, from the tag alone."""
    checkout = tmp_path / "checkout"
    names = run_git(ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
    for name in sorted({name for name in names if name and (ROOT / name).is_file()}):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, checkout / name)
    override_params(checkout / "params.yaml", flat(yaml.safe_load(SMALL_PARAMS)))
    run_git(checkout, "init", "-q", "-b", "main")
    run_git(checkout, "add", "-A")
    run_git(checkout, "commit", "-q", "-m", "plant")
    home = tmp_path / "home"
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "HEARKEN_"))}
    environment = child_environment(Settings.of(checkout, {"HEARKEN_HOME": str(home)}), {**kept, **QUIET})
    environment["HEARKEN_REFUSED_CONNECTIONS"] = os.environ["HEARKEN_REFUSED_CONNECTIONS"]

    def hearken(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "flows.cli", *arguments]
        return subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=False)

    built = hearken("build", "--clone")
    assert built.returncode == 0, built.stdout + built.stderr
    shutil.rmtree(home / "workspaces")
    shutil.rmtree(home / "cache")
    for arguments in ((), ("--weights",)):
        again = hearken("releases", "rebuild", "v1", "--json", *arguments)
        assert again.returncode == 0, again.stdout + again.stderr
        told = json.loads(again.stdout)
        assert told["equal"] is True
        assert told["notes"] == []
    assert {"weights detectors/vae/weights.safetensors", "threshold ensemble, page"} <= {
        each["what"] for each in told["compared"]
    }

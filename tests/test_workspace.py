"""Private clones, snapshots of a checkout, builds' commits and tags."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from flows.repository import (
    commit_build,
    delete_branch,
    next_release_number,
    run_git,
    snapshot_commit,
    tag_release,
    untracked_files,
)
from flows.settings import QUIET, Settings, child_environment, configure
from flows.workspace import Workspace, create_workspace, end_leftovers, held, open_workspace, override_params
from pipeline.errors import ParamsError, WorkspaceError
from pipeline.params import load_params


def _commit(folder: Path, message: str = "x") -> str:
    run_git(folder, "add", "-A")
    run_git(folder, "commit", "-q", "-m", message)
    return run_git(folder, "rev-parse", "HEAD")


@pytest.fixture
def checkout(tmp_path):
    folder = tmp_path / "checkout"
    (folder / ".dvc").mkdir(parents=True)
    run_git(folder, "init", "-q", "-b", "main")
    (folder / ".dvc" / "config").write_text(
        "[core]\n    analytics = false\n    remote = store\n['remote \"store\"']\n    url = x\n"
    )
    (folder / ".gitignore").write_text(".hearken/\n/made\n")
    (folder / "dvc.yaml").write_text("stages:\n  make:\n    cmd: cat code > made\n    deps: [code]\n    outs: [made]\n")
    (folder / "params.yaml").write_text("seed: 7  # kept\nsplit:\n  changed_at: null\n")
    (folder / "code").write_text("one\n")
    _commit(folder)
    return folder


@pytest.fixture
def settings(checkout):
    return Settings.of(checkout, {})


def test_a_clean_checkout_is_its_head(checkout):
    assert snapshot_commit(checkout) == run_git(checkout, "rev-parse", "HEAD")


def test_edits_come_along_and_nothing_of_the_checkout_moves(checkout, settings):
    (checkout / "code").write_text("two\n")
    (checkout / "new").write_text("untracked\n")
    before = run_git(checkout, "status", "--porcelain"), run_git(checkout, "for-each-ref")
    with open_workspace(settings, clone=True) as workspace:
        assert (workspace.folder / "code").read_text() == "two\n"
        assert not (workspace.folder / "new").exists()
    assert untracked_files(checkout) == ["new"]
    assert (run_git(checkout, "status", "--porcelain"), run_git(checkout, "for-each-ref")) == before
    assert run_git(checkout, "rev-list", "--parents", "-n1", workspace.commit).split()[1:] == [
        run_git(checkout, "rev-parse", "HEAD")
    ]


def test_a_folder_without_a_commit_is_one_message(tmp_path):
    with pytest.raises(WorkspaceError, match="expected one to clone"):
        snapshot_commit(tmp_path)
    run_git(tmp_path, "init", "-q")
    with pytest.raises(WorkspaceError, match="no git repository with a commit"):
        snapshot_commit(tmp_path)


def test_a_workspace_used_again_keeps_lock_and_data_and_follows_the_code(checkout, settings):
    def built():
        with open_workspace(settings, clone=True) as workspace:
            subprocess.run(["dvc", "repro", "-q"], cwd=workspace.folder, env=workspace.environment, check=True)
            commit_build(workspace.folder, "build/a", "built")
        return workspace

    folder = built().folder
    lock, made = (folder / "dvc.lock").read_text(), (folder / "made").stat()
    with open_workspace(settings, clone=True) as workspace:
        assert (folder / "dvc.lock").read_text() == lock
        assert (folder / "made").stat().st_mtime_ns == made.st_mtime_ns
        assert run_git(folder, "rev-parse", "HEAD") == workspace.commit == run_git(checkout, "rev-parse", "HEAD")
    (checkout / "code").write_text("three\n")
    _commit(checkout)
    built()
    assert (folder / "made").read_text() == "three\n"
    assert any(settings.cache.rglob("*"))
    assert not (folder / ".dvc" / "cache").exists()


def test_a_remote_branch_brings_its_own_lock(checkout, settings, tmp_path):
    with open_workspace(settings, clone=True) as workspace:
        (workspace.folder / "dvc.lock").write_text("schema: '2.0'\nstages: {}\n")
        commit = commit_build(workspace.folder, "build/b", "inputs", push=True)
    other = tmp_path / "other"
    assert create_workspace(checkout, "build/b", other, tmp_path / "cache", "/remote", keep_lock=False) == commit
    assert (other / "dvc.lock").read_text().endswith("stages: {}\n")
    assert "'remote \"store\"'" in (other / ".dvc" / "config.local").read_text()
    assert run_git(other, "status", "--porcelain") == ""
    delete_branch(workspace.folder, "build/b")
    assert "build/b" not in run_git(checkout, "for-each-ref")
    delete_branch(workspace.folder, "build/b")  # gone already


def test_an_unknown_revision_and_a_folder_without_dvc_are_named(checkout, settings, tmp_path):
    with pytest.raises(WorkspaceError, match="got nowhere, expected a branch, tag or commit"):
        create_workspace(checkout, "nowhere", tmp_path / "w", tmp_path / "c", "/r")
    (checkout / ".dvc" / "config").unlink()
    _commit(checkout)
    with (
        pytest.raises(WorkspaceError, match=r"no \.dvc/config"),
        open_workspace(settings, clone=True, name="other"),
    ):
        pass


def test_a_failed_clone_leaves_nothing(tmp_path):
    with pytest.raises(WorkspaceError, match="git clone"):
        create_workspace(tmp_path / "missing", "main", tmp_path / "places" / "w", tmp_path / "c", "/r")
    assert list((tmp_path / "places").iterdir()) == []


def test_a_second_build_of_a_workspace_is_refused(settings, tmp_path):
    with (
        held(settings, tmp_path / "w"),
        pytest.raises(WorkspaceError, match="got a build at work"),
        held(settings, tmp_path / "w"),
    ):
        pass
    with held(settings, tmp_path / "w"):
        pass


def test_overrides_keep_comments_and_are_checked(checkout):
    path = checkout / "params.yaml"
    override_params(path, {"split.changed_at": "2025-02-01T00:00:00+00:00", "source.path": "/landing"})
    params = load_params(path)
    assert params.split.changed_at.isoformat() == "2025-02-01T00:00:00+00:00"
    assert params.source.path == "/landing"
    text = path.read_text()
    assert "# kept" in text
    for wrong in ({"split.nothing": 1}, {"nothing.at_all": 1}, {"seed": "seven"}, {"seed.x": 1}):
        with pytest.raises(ParamsError):
            override_params(path, wrong)
    assert path.read_text() == text
    # DVC refuses a value that YAML reads as a date
    environment = child_environment(Settings.of(checkout, {}))
    (checkout / "dvc.yaml").write_text("stages: {a: {cmd: echo, params: [split.changed_at], outs: [made]}}\n")
    subprocess.run(["dvc", "status"], cwd=checkout, env=environment, check=True, capture_output=True)


def test_overrides_of_a_persons_checkout_are_refused(settings):
    with (
        pytest.raises(WorkspaceError, match="expected none in a checkout"),
        open_workspace(settings, clone=False, params_overrides={"seed": 1}),
    ):
        pass


def test_leftovers_of_a_killed_build_are_ended_and_nobody_else(settings, tmp_path):
    folder = tmp_path / "w"
    (folder / ".dvc" / "tmp").mkdir(parents=True)
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    inside = subprocess.Popen(sleep, cwd=folder, start_new_session=True)
    outside = subprocess.Popen(sleep, cwd=tmp_path, process_group=0)
    try:
        workspace = Workspace(folder=folder, commit="", origin=None, settings=settings)
        workspace.group_file.write_text(str(outside.pid))  # an id that belongs to somebody else now
        assert end_leftovers(workspace) == []
        workspace.group_file.write_text(str(inside.pid))
        assert end_leftovers(workspace) == [inside.pid]
        assert inside.wait(5) == -9
        assert outside.poll() is None
        assert not workspace.group_file.exists()
    finally:
        for process in (inside, outside):
            process.kill()
            process.wait()


def test_tags_take_the_next_number_on_a_race(checkout, settings):
    with (
        open_workspace(settings, clone=True, name="a") as first,
        open_workspace(settings, clone=True, name="b") as other,
    ):
        commit_build(first.folder, "build/a", "a")
        commit_build(other.folder, "build/b", "b")
        number = next_release_number(other.folder, other.origin, taken=[2])
        assert number == 3
        assert tag_release(first.folder, number, "release a") == (3, None)
        assert tag_release(other.folder, number, "release b") == (4, None)
    assert run_git(checkout, "tag").splitlines() == ["release/v3", "release/v4"]
    assert run_git(checkout, "cat-file", "-t", "release/v4") == "tag"
    assert next_release_number(checkout, ".") == 5


def test_a_refused_tag_is_removed_here_too(checkout, settings):
    hook = checkout / ".git" / "hooks" / "pre-receive"
    hook.write_text("#!/bin/sh\nexit 1\n")
    hook.chmod(0o755)
    with open_workspace(settings, clone=True) as workspace:
        number, refusal = tag_release(workspace.folder, 1, "release")
    assert number == 1
    assert "refused" in refusal
    assert run_git(workspace.folder, "tag") == ""
    assert run_git(checkout, "tag") == ""


def test_places_come_from_the_environment(tmp_path):
    with pytest.raises(WorkspaceError, match="HEARKEN_HOME: got no value"):
        Settings.of(tmp_path, {}, worker=True)
    with pytest.raises(WorkspaceError, match="HEARKEN_REPOSITORY: got no value"):
        Settings.of(tmp_path, {"HEARKEN_HOME": "/h"}, worker=True)
    settings = Settings.of(tmp_path, {"HEARKEN_HOME": str(tmp_path / "h"), "HEARKEN_LANDING": "/landing"})
    assert settings.releases == tmp_path / "h" / "releases"
    assert settings.landing_zone("data/demo") == Path("/landing")
    assert Settings.of(tmp_path, {}).landing_zone("data/demo") == tmp_path / "data" / "demo"


def test_every_process_is_started_without_telemetry_and_finds_our_programs(settings):
    environment = child_environment(settings, {"PATH": "/usr/bin", "DVC_NO_ANALYTICS": "0"})
    assert QUIET.items() <= environment.items()
    assert environment["PATH"].split(os.pathsep) == [str(Path(sys.executable).parent), "/usr/bin"]
    mine = str(settings.home / "mine")
    own: dict[str, str] = {"PREFECT_HOME": mine}
    configure(settings, own)
    assert own["PREFECT_HOME"] == mine
    assert QUIET.items() <= own.items()

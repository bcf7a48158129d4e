"""Builds of a toy graph: small scripts instead of stages; git, DVC and the embedded Prefect server are real."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from rich.console import Console

from flows.build import run_build
from flows.database import open_database
from flows.plan import make_plan
from flows.registry import list_releases
from flows.repository import run_git
from flows.settings import QUIET, Settings, child_environment
from flows.stages import Outcome, explain_failure, read_outcome, run_stage
from flows.summary import BuildResult, copy_outputs, print_summary
from flows.train_on_gpu import hand_over, move_data, take_inputs
from flows.workspace import Workspace, create_workspace, open_workspace
from pipeline.errors import ParamsError, StageFailed, UserError, WorkspaceError

DVC_YAML = """\
stages:
  report:
    cmd: python step.py report data/release/manifest.json
    deps: [data/release, step.py]
    outs: [reports/index.html]
  release:
    cmd: python step.py release data/models/pca data/models/energy_zscore
    deps: [data/models/pca, data/models/energy_zscore, step.py]
    params: [release]
    outs: [data/release]
    metrics: [metrics/evaluation.json]
  train:
    matrix: {detector: "${detectors}"}
    cmd: python step.py ${item.detector} data/raw
    deps: [data/raw, step.py]
    params: ["train.${item.detector}"]
    outs: ["data/models/${item.detector}"]
  ingest:
    cmd: python step.py ingest
    deps: ["${source.path}", step.py]
    outs: [data/raw]
  simulate:
    cmd: python step.py simulate
    deps: [step.py]
    outs: [data/demo]
"""
PARAMS = """\
source:
  path: data/demo
detectors: [pca, energy_zscore]
release:
  detector: pca
train:
  pca:
    max_components: 3
  energy_zscore:
    two_sided: true
"""
STEP = """\
import json, os, pathlib, sys, time
name, inputs = sys.argv[1], sys.argv[2:]
started = time.perf_counter()
print("progress 1/1", flush=True)
if os.environ.get("TOY_BREAKS") == name:
    print("error: bins: got 63, expected 64, in fleet.yaml.\\\\nsecond line", file=sys.stderr)
    sys.exit(2)
if os.environ.get("TOY_CRASHES") == name:
    raise RuntimeError("the disk is on fire")
text = name + "".join(pathlib.Path(path).read_text() for path in inputs)
if name == "simulate": out = "data/demo"
elif name == "ingest": out = "data/raw"
elif name == "report": out = "reports/index.html"
elif name == "release": out = "data/release/manifest.json"
else: out = "data/models/" + name
pathlib.Path(out).parent.mkdir(parents=True, exist_ok=True)
if name == "release":
    pathlib.Path("metrics").mkdir(exist_ok=True)
    figures = {"detectors": {"pca": {"auroc": 0.9, "events": 4, "partial_auroc": None}}}
    pathlib.Path("metrics/evaluation.json").write_text(json.dumps(figures))
    text = json.dumps({"provisional": False, "metrics": figures, "made_of": text})
pathlib.Path(out).write_text(text)
with open(os.environ["HEARKEN_STAGE_TIMES"], "a") as times:
    times.write(json.dumps({"stage": name, "seconds": 0.25}) + "\\\\n")
""".replace("\\\\n", "\\n")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A Prefect server for the builds inside this process; those of other processes start their own."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**QUIET, "PREFECT_HOME": str(tmp_path_factory.mktemp("prefect"))}.items():
            patch.setenv(name, value)
        from prefect.testing.utilities import prefect_test_harness

        with prefect_test_harness(server_startup_timeout=120):
            yield


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A project with the toy graph, committed; builds work below it."""
    for name in [name for name in os.environ if name.startswith(("HEARKEN_", "PREFECT_", "GIT_"))]:
        monkeypatch.delenv(name)
    for name, value in {**QUIET, "PREFECT_HOME": str(tmp_path / "prefect")}.items():
        monkeypatch.setenv(name, value)
    folder = tmp_path / "checkout"
    (folder / ".dvc").mkdir(parents=True)
    run_git(folder, "init", "-q", "-b", "main")
    (folder / ".dvc" / "config").write_text(
        "[core]\n    analytics = false\n    remote = plant\n['remote \"plant\"']\n    url = ../.hearken/remote\n"
    )
    (folder / ".gitignore").write_text(".hearken/\n/data/\n/reports/\n/metrics/\n")
    for name, text in (("dvc.yaml", DVC_YAML), ("params.yaml", PARAMS), ("step.py", STEP)):
        (folder / name).write_text(text)
    run_git(folder, "add", "-A")
    run_git(folder, "commit", "-q", "-m", "toy")
    return folder


def summary_of(result: BuildResult) -> str:
    console = Console(file=io.StringIO(), width=200)
    print_summary(result, console)
    return console.file.getvalue()


def outcomes(result: BuildResult) -> dict[str, str]:
    return {stage.stage: stage.outcome.value for stage in result.stages}


def repro(workspace, stage, **options):
    return run_stage(workspace.folder, stage, environment=workspace.environment, **options)


def test_a_plan_orders_what_is_out_of_date_and_needed(checkout):
    with open_workspace(Settings.of(checkout), clone=True) as workspace:
        plan = make_plan(workspace)
        assert plan.outdated == ("simulate", "ingest", "train@pca", "train@energy_zscore", "release", "report")
        assert plan.neural == ()
    landing = checkout.parent / "landing"
    landing.write_text("rows")
    overrides = {"source.path": str(landing)}
    with open_workspace(Settings.of(checkout), clone=True, name="other", params_overrides=overrides) as workspace:
        assert make_plan(workspace).graph.order[0] == "ingest"  # nothing needs the simulation


def test_a_stage_runs_then_is_unchanged_then_is_restored(checkout):
    shown: list[str] = []
    with open_workspace(Settings.of(checkout), clone=True) as workspace:
        first = repro(workspace, "simulate", log=shown.append, group_file=workspace.group_file)
        assert (first.outcome, first.compute_seconds) == (Outcome.RAN, 0.25)
        assert shown == ["simulate: progress 1/1"]
        assert not workspace.group_file.exists()
        again = repro(workspace, "simulate")
        assert (again.outcome, again.compute_seconds) == (Outcome.UNCHANGED, None)
        (workspace.folder / "data/demo").unlink()
        (workspace.folder / "dvc.lock").unlink()
        assert repro(workspace, "simulate").outcome == Outcome.RESTORED
        assert (workspace.folder / "data/demo").read_text() == "simulate"


def trained_elsewhere(checkout, branch: str) -> tuple[Outcome, Outcome]:
    """What a worker with a home of its own did to train, and what the build then did."""
    here = Settings.of(checkout)
    there = Settings.of(checkout, {"HEARKEN_HOME": str(checkout.parent / "worker"), "HEARKEN_DVC_REMOTE": here.remote})
    with open_workspace(here, clone=True) as workspace:
        for stage in ("simulate", "ingest"):
            repro(workspace, stage)
        hand_over.fn(workspace, branch, ["ingest"])
        folder = there.workspaces / "train-on-gpu"
        create_workspace(here.repository, branch, folder, there.cache, there.remote, keep_lock=False)
        worker = Workspace(folder=folder, commit="", origin=here.repository, settings=there)
        take_inputs.fn(worker, ["train@pca"])
        trained = repro(worker, "train@pca", pull=True).outcome
        move_data.fn(worker, ["push", "--run-cache", "train@pca"])
        move_data.fn(workspace, ["fetch", "--run-cache", "train@pca"])
        return trained, repro(workspace, "train@pca", pull=True).outcome


def test_a_worker_that_trains_again_reads_the_inputs_of_this_build_and_not_of_the_last(checkout):
    assert trained_elsewhere(checkout, "build/one") == (Outcome.RAN, Outcome.RESTORED)
    (checkout / "step.py").write_text(STEP.replace("text = name", 'text = "other rows, " + name', 1))
    assert trained_elsewhere(checkout, "build/two") == (Outcome.RAN, Outcome.RESTORED)


def test_a_persons_mistake_in_a_stage_comes_in_its_own_words(checkout, monkeypatch):
    monkeypatch.setenv("TOY_BREAKS", "simulate")
    with (
        open_workspace(Settings.of(checkout), clone=True) as workspace,
        pytest.raises(UserError, match=r"^stage simulate: bins: got 63, expected 64, in fleet.yaml.\nsecond line$"),
    ):
        repro(workspace, "simulate")


def test_a_crash_in_a_stage_is_named(checkout, monkeypatch):
    monkeypatch.setenv("TOY_CRASHES", "simulate")
    with (
        open_workspace(Settings.of(checkout), clone=True) as workspace,
        pytest.raises(StageFailed, match="stage simulate ended with exit code 1: RuntimeError: the disk is on fire"),
    ):
        repro(workspace, "simulate")
    assert explain_failure("clean", -9, []).exit_code == -9
    assert "unexpected" in str(explain_failure("clean", 255, ["ERROR: unexpected"]))
    assert read_outcome([]) == Outcome.UNCHANGED


def test_whatever_ends_the_caller_ends_the_stage(checkout):
    (checkout / "step.py").write_text("import time\nprint('progress 0/9', flush=True)\ntime.sleep(600)\n")

    def interrupt(_line):
        raise KeyboardInterrupt

    with open_workspace(Settings.of(checkout), clone=True) as workspace:
        with pytest.raises(KeyboardInterrupt):
            repro(workspace, "simulate", log=interrupt)
        alive = [
            process.pid
            for process in psutil.process_iter(["cwd"])
            if process.info["cwd"] == str(workspace.folder) and process.pid != os.getpid()
        ]
    assert alive == []


def test_copied_outputs_replace_files_and_leave_others(tmp_path):
    built, checkout = tmp_path / "built", tmp_path / "checkout"
    for folder, text in ((built, "new"), (checkout, "old")):
        (folder / "metrics").mkdir(parents=True)
        (folder / "metrics" / "a.json").write_text(text)
    (checkout / "metrics" / "mine.json").write_text("kept")
    docs = built / "reports" / "data_docs" / "index.html"
    docs.parent.mkdir(parents=True)
    docs.write_text("docs")
    copied = checkout / "reports" / "data_docs" / "index.html"
    assert copy_outputs(built, checkout) == [copied, checkout / "metrics" / "a.json"]
    assert copied.read_text() == "docs"
    assert (checkout / "metrics" / "a.json").read_text() == "new"
    assert (checkout / "metrics" / "mine.json").read_text() == "kept"
    assert copy_outputs(checkout, checkout) == []


@pytest.mark.server
def test_a_build_from_nothing_to_nothing_changed(checkout, server):
    result = run_build(checkout, clone=True, name="demo", show=False)
    printed = summary_of(result)
    assert set(outcomes(result).values()) == {"ran"}
    assert list(outcomes(result)) == ["simulate", "ingest", "train@pca", "train@energy_zscore", "release", "report"]
    assert result.compute_seconds == pytest.approx(1.5)
    for text in ("train@energy_zscore", "0.9", f"release v1 ({result.release_id})", "–"):
        assert text in printed
    assert (checkout / "reports" / "index.html").is_file()
    assert run_git(checkout, "status", "--porcelain") == ""
    settings = Settings.of(checkout)
    assert json.loads((settings.releases / result.release_id / "manifest.json").read_text())["provisional"] is False
    assert any((settings.home / "remote" / "runs").rglob("*"))

    # the tag leads from the checkout to the release's bytes, through the DVC remote
    assert run_git(checkout, "tag") == "release/v1"
    assert run_git(checkout, "rev-parse", "release/v1^{commit}") == result.commit
    got = checkout.parent / "got"
    subprocess.run(
        ["dvc", "get", str(checkout), "data/release", "--rev", "release/v1", "-o", str(got)],
        env=child_environment(settings),
        check=True,
        capture_output=True,
    )
    assert (got / "manifest.json").read_bytes() == (result.folder / "data/release/manifest.json").read_bytes()

    started = time.monotonic()
    again = run_build(checkout, clone=True, name="demo", show=False)
    assert time.monotonic() - started < 20
    assert set(outcomes(again).values()) == {"unchanged"}
    assert (again.release_id, again.version) == (result.release_id, 1)
    assert "nothing changed" in summary_of(again)

    # another workspace finds everything in the run-cache, and the same bytes are the same release
    other = run_build(checkout, clone=True, name="other", show=False)
    assert set(outcomes(other).values()) == {"restored"}
    assert (other.release_id, other.version) == (result.release_id, 1)


@pytest.mark.server
def test_a_changed_setting_runs_what_depends_on_it(checkout, server):
    run_build(checkout, clone=True, show=False)
    overrides = {"train.pca.max_components": 4, "release.detector": "energy_zscore"}
    result = run_build(checkout, clone=True, params_overrides=overrides, show=False)
    assert outcomes(result) == {
        "simulate": "unchanged",
        "ingest": "unchanged",
        "train@pca": "ran",
        "train@energy_zscore": "unchanged",
        "release": "ran",
        "report": "unchanged",  # the same bytes came out
    }
    assert result.version == 1
    assert "max_components: 4" in run_git(result.folder, "show", f"{result.commit}:params.yaml")
    assert run_git(checkout, "branch", "--list", "build/*") == ""


@pytest.mark.slow
def test_a_build_whose_remote_did_not_answer_goes_on_to_a_commit_with_its_lock(checkout, server, monkeypatch):
    """Nothing is half-released: no row and no tag, until a later build can push what the first one made."""
    (checkout.parent / "broken").write_text("a file where a folder should be")
    monkeypatch.setenv("HEARKEN_DVC_REMOTE", str(checkout.parent / "broken" / "remote"))
    with pytest.raises(WorkspaceError, match="dvc push"):
        run_build(checkout, clone=True, show=False)
    engine = open_database(Settings.of(checkout).database_url)
    assert list_releases(engine) == []
    assert run_git(checkout, "tag") == ""
    monkeypatch.delenv("HEARKEN_DVC_REMOTE")
    result = run_build(checkout, clone=True, show=False)
    assert set(outcomes(result).values()) == {"unchanged"}
    assert result.version == 1
    assert "data/release" in run_git(checkout, "show", "release/v1:dvc.lock")
    assert run_git(checkout, "rev-parse", "release/v1^{commit}") == result.commit
    assert any((Settings.of(checkout).home / "remote" / "runs").rglob("*"))
    engine.dispose()


@pytest.mark.server
def test_a_build_in_the_checkout_commits_nothing(checkout, server):
    head = run_git(checkout, "rev-parse", "HEAD")
    result = run_build(checkout, clone=False, show=False)
    assert set(outcomes(result).values()) == {"ran"}
    assert result.commit == run_git(checkout, "rev-parse", "HEAD") == head
    assert run_git(checkout, "tag") == ""
    assert (checkout / "reports" / "index.html").is_file()
    assert "no tag" in result.note


PROGRAM = """
import sys
from flows.build import run_build
from flows.database import open_database
from pipeline.errors import HearkenError
try:
    run_build(sys.argv[1], clone=True)
except HearkenError as error:
    print(f"{type(error).__name__}: {error}", file=sys.stderr)
    sys.exit(2)
"""


@pytest.mark.server
def test_a_failing_build_shows_one_message_and_no_traceback(checkout):
    environment = child_environment(Settings.of(checkout)) | {"TOY_BREAKS": "ingest"}
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(checkout)], env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert "UserError: stage ingest: bins: got 63, expected 64, in fleet.yaml." in result.stderr
    assert "NoneType: None" not in result.stdout + result.stderr
    assert "Traceback" not in result.stdout + result.stderr
    assert run_git(checkout, "tag") == ""


@pytest.mark.server
def test_an_interrupted_build_leaves_no_stage_and_can_go_on(checkout, server):
    wait = 'if name == "ingest" and os.environ.get("TOY_SLOW"): time.sleep(600)'
    slow = STEP.replace("text = name", f"{wait}\ntext = name")
    (checkout / "step.py").write_text(slow)
    environment = child_environment(Settings.of(checkout)) | {"TOY_SLOW": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(checkout)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        for line in process.stdout:
            if "ingest: progress" in line:
                process.send_signal(signal.SIGINT)
                break
        process.communicate(timeout=60)
        assert process.returncode != 0
    finally:
        process.kill()
        process.wait()
    folder = Settings.of(checkout).workspaces / "build"
    alive = [p.pid for p in psutil.process_iter(["cwd"]) if p.info["cwd"] == str(folder)]
    assert alive == []
    result = run_build(checkout, clone=True, show=False)
    assert outcomes(result)["simulate"] == "unchanged"
    assert outcomes(result)["report"] == "ran"


@pytest.mark.server
def test_mistakes_before_the_first_stage_are_one_message(checkout):
    with pytest.raises(ParamsError, match=r"params.yaml"):
        run_build(checkout, clone=True, params_overrides={"nothing": 1})
    (checkout / "dvc.yaml").write_text(DVC_YAML.replace("deps: [data/models/pca, ", "deps: ["))
    with pytest.raises(WorkspaceError, match="got energy_zscore, expected exactly one per detector"):
        run_build(checkout, clone=True)


def test_a_printed_summary_holds_every_stage(tmp_path):
    result = BuildResult(folder=tmp_path, commit="", branch="", stages=(), seconds=1.0, note="the tag was refused")
    assert "the tag was refused" in summary_of(result)

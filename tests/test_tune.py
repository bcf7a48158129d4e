"""Searches over settings: what is tried, and with real DVC, on a graph of one script, what comes of it."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from flows.params_edit import with_values
from flows.repository import run_git
from flows.settings import QUIET, Settings
from flows.tune.experiments import Experiment, end_orphans, figure_of
from flows.tune.search import combinations, names_of, parse_axis
from flows.tune.tables import changed_keys, plot_page, ranked
from flows.workspace import Workspace
from pipeline.errors import UserError
from pipeline.params import load_params

DVC_YAML = """\
stages:
  evaluate:
    cmd: python step.py
    deps: [step.py]
    params: [train]
    outs: [data/evaluation.txt]
    metrics: [metrics/tuning.json, metrics/evaluation.json]
"""
PARAMS = """\
# every setting
train:
  autoencoder:
    latent: 12  # numbers of the code
    optimiser: {max_epochs: 16,
      learning_rate: 0.002}
"""
STEP = """\
import json, pathlib, sys, yaml
print("progress evaluate: at work", flush=True)
train = yaml.safe_load(open("params.yaml"))["train"]["autoencoder"]
if train["latent"] == 7:
    print("error: latent: got 7, expected another.", file=sys.stderr)
    sys.exit(2)
pathlib.Path("data").mkdir(exist_ok=True)
pathlib.Path("metrics").mkdir(exist_ok=True)
pathlib.Path("data/evaluation.txt").write_text(str(train["latent"]))
auroc = 1 - (train["latent"] - 8) ** 2 / 100
figures = {"detectors": {"ensemble": {"auroc": auroc}, "autoencoder": {"validation_loss": 1 / train["latent"]}}}
pathlib.Path("metrics/tuning.json").write_text(json.dumps(figures))
pathlib.Path("metrics/evaluation.json").write_text(json.dumps({"detectors": {"ensemble": {"auroc": auroc - 0.1}}}))
"""


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A checkout with an uncommitted edit, in which two widths were tried at once, and one that fails."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("HEARKEN_", "PREFECT_", "GIT_"))]:
            patch.delenv(name)
        for name, value in QUIET.items():
            patch.setenv(name, value)
        folder = tmp_path_factory.mktemp("tune") / "checkout"
        (folder / ".dvc").mkdir(parents=True)
        run_git(folder, "init", "-q", "-b", "main")
        (folder / ".dvc/config").write_text(
            "[core]\n    analytics = false\n    remote = plant\n['remote \"plant\"']\n    url = ../.hearken/remote\n"
        )
        (folder / ".gitignore").write_text(".hearken/\n/data/\n/metrics/\n")
        for name, text in (("dvc.yaml", DVC_YAML), ("params.yaml", PARAMS), ("step.py", STEP)):
            (folder / name).write_text(text)
        run_git(folder, "add", "-A")
        run_git(folder, "commit", "-q", "-m", "toy")
        (folder / "params.yaml").write_text(PARAMS.replace("every setting", "an edit that nobody committed"))
        before = run_git(folder, "status", "--porcelain"), run_git(folder, "for-each-ref")
        patch.chdir(folder)
        said = _command(patch, "--set", "train.autoencoder.latent=4,7,10,12", "--jobs", 2)
        yield folder, before, said


def _command(patch: pytest.MonkeyPatch, *arguments: object) -> tuple[int, str, str]:
    from flows import cli

    out, errors, code = io.StringIO(), io.StringIO(), 0
    patch.setattr(sys, "argv", ["hearken", "tune", *map(str, arguments)])
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        try:
            cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
    return code, out.getvalue(), errors.getvalue()


@pytest.mark.server
class TestWithDvc:
    def test_experiments_run_and_the_best_stands_first(self, searched: Any) -> None:
        _, _, (code, said, errors) = searched
        assert (code, errors) == (0, ""), said
        assert "1 of 4 are the present settings" in said
        assert "3 experiments, 2 at once" in said
        rows = [line.split() for line in said.splitlines() if line.strip().startswith(("latent-", "now"))]
        table = [row for row in rows if ":" not in row[0]]
        assert [row[0] for row in table] == ["latent-10", "now", "latent-4", "latent-7"]
        assert table[0][1:4] == ["10", "0.96", "done"]
        assert "failed: latent: got 7, expected another." in " ".join(said.split())

    def test_the_checkout_is_as_it_was(self, searched: Any) -> None:
        folder, before, _ = searched
        assert (run_git(folder, "status", "--porcelain"), run_git(folder, "for-each-ref")) == before
        assert before[0].strip() == "M params.yaml"
        assert not (folder / "dvc.lock").exists()
        assert not (folder / "metrics").exists()

    def test_no_worker_of_the_queue_is_left(self, searched: Any) -> None:
        left = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if "queue-worker" in process.cmdline() and Path(process.cwd()).is_relative_to(searched[0]):
                    left.append(process)
        assert not left

    def test_the_winner_is_applied_and_comments_stay(self, searched: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        folder, _, _ = searched
        monkeypatch.chdir(folder)
        text = (folder / "params.yaml").read_text()
        try:
            code, said, _ = _command(monkeypatch, "apply", "latent-10")
            assert code == 0
            assert "train.autoencoder.latent: 12 -> 10" in said
            assert (folder / "params.yaml").read_text() == text.replace("latent: 12 ", "latent: 10 ")
        finally:
            (folder / "params.yaml").write_text(text)
        code, _, errors = _command(monkeypatch, "apply", "latent-99")
        assert code == 2
        assert "got latent-99, expected one of: latent-4, latent-7, latent-10" in errors

    def test_what_was_tried_is_listed_by_any_metric_and_plotted(
        self, searched: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.chdir(searched[0])
        loss = "detectors.autoencoder.validation_loss"
        code, said, _ = _command(
            monkeypatch, "list", "--metric", loss, "--metric", "evaluation:detectors.ensemble.auroc"
        )
        assert code == 0
        names = [line.split()[0] for line in said.splitlines() if line.strip().startswith(("latent-", "now"))]
        assert names == ["now", "latent-10", "latent-4", "latent-7"]  # a loss: the lowest first
        code, _, errors = _command(monkeypatch, "list", "--metric", "detectors.ensemble.auroc")
        assert code == 2
        assert "expected evaluation:detectors.ensemble.auroc or tuning:detectors.ensemble.auroc" in errors
        page = tmp_path / "plot.html"
        code, _, _ = _command(
            monkeypatch, "plot", "--x", "train.autoencoder.latent", "--metric", loss, "--output", page
        )
        assert code == 0
        assert "validation_loss" in page.read_text()

    def test_an_unknown_key_or_value_is_refused_before_anything_runs(
        self, searched: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(searched[0])
        for given, said in (("train.autoencoder.width=4,8", "width"), ("train.autoencoder.latent=4,-1", "latent=-1")):
            code, _, errors = _command(monkeypatch, "--set", given)
            assert code == 2
            assert said in errors
        clone = searched[0] / ".hearken/workspaces/tune/params.yaml"
        assert load_params(clone).train.autoencoder.latent == 12


def test_stages_that_outlive_their_experiment_are_ended_and_nobody_else(tmp_path: Path) -> None:
    place = tmp_path / "clone/.dvc/tmp/exps/tmp1"
    place.mkdir(parents=True)
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    inside, outside = (subprocess.Popen(sleep, cwd=folder) for folder in (place, tmp_path / "clone"))
    try:
        settings = Settings.of(tmp_path, {})
        workspace = Workspace(folder=tmp_path / "clone", commit="", origin=None, settings=settings)
        assert end_orphans(workspace) == [inside.pid]
        assert inside.wait(10) != 0
        assert outside.poll() is None
    finally:
        for process in (inside, outside):
            process.kill()
            process.wait()


class TestSearch:
    def test_a_grid_is_every_combination(self) -> None:
        tried = combinations([parse_axis("a.b=1,2,3"), parse_axis("c=null,[x, y]")], None, 0)
        assert len(tried) == 6
        assert tried[-1] == {"a.b": 3, "c": ["x", "y"]}

    def test_random_draws_are_seeded_different_and_within_their_ranges(self) -> None:
        axes = [parse_axis("rate=1e-4..1e-1:log"), parse_axis("latent=4..8"), parse_axis("kind=dense,convolutional")]
        tried = combinations(axes, 100, 7)
        assert tried == combinations(axes, 100, 7) != combinations(axes, 100, 8)
        assert len({repr(one) for one in tried}) == 100
        assert {one["latent"] for one in tried} == {4, 5, 6, 7, 8}
        rates = [one["rate"] for one in tried]
        assert 1e-4 <= min(rates) < 3e-4 < 3e-2 < max(rates) <= 1e-1
        assert 20 < sum(rate < 10**-2.5 for rate in rates) < 80  # even on a log scale
        assert len(combinations([parse_axis("a=1,2")], 100, 7)) == 2  # there are no more

    @pytest.mark.parametrize(
        ("given", "draws", "said"),
        [
            ([], None, "got none"),
            (["latent"], None, "expected key=value"),
            (["latent="], None, "expected key=value"),
            (["latent=4,,8"], None, "no empty value"),
            (["latent=4,4"], None, "each value once"),
            (["latent=4..8"], None, "a range needs --random"),
            (["latent=8..4"], 3, "a range that rises"),
            (["rate=0..1:log"], 3, "begins above 0"),
            (["a=1", "a=2"], None, "got a twice"),
            (["a=" + ",".join(map(str, range(201)))], None, "at most 200"),
            (["a=[1"], None, "YAML"),
        ],
    )
    def test_mistakes(self, given: list[str], draws: int | None, said: str) -> None:
        with pytest.raises(UserError, match=said.replace("[", r"\[")):
            combinations([parse_axis(text) for text in given], draws, 0)

    def test_names_are_different_and_stay(self) -> None:
        tried = combinations([parse_axis("train.vae.latent=4,8"), parse_axis("train.autoencoder.latent=-1,1")], None, 0)
        names = names_of(tried)
        assert len(set(names)) == 4
        assert names == names_of(tried)
        assert names[1] == "vae-latent-4-autoencoder-latent-1"
        for name in names:
            run_git(Path.cwd(), "check-ref-format", f"refs/exps/{name}")


class TestFigures:
    now = Experiment(name="now", state="success", params={"a": 1}, metrics={"tuning": {"d": {"auroc": None}}})
    best = Experiment(name="a-2", state="success", params={"a": 2}, metrics={"tuning": {"d": {"auroc": 0.7}}})
    failed = Experiment(name="a-3", state="failed", params={"a": 3}, why="it broke")

    def test_null_figures_come_last(self) -> None:
        assert [each.name for each in ranked([self.now, self.failed, self.best], "d.auroc", False)] == ["a-2", "now"]
        assert changed_keys([self.now, self.best]) == ["a"]
        with pytest.raises(UserError, match=r"expected a figure of a metric file \(tuning\), such as tuning:d\.auroc"):
            figure_of(self.best, "tuning:e.auroc")

    def test_a_setting_that_is_no_number_is_not_plotted(self) -> None:
        with pytest.raises(UserError, match="expected a number"):
            plot_page([self.now, self.best], "b", ["d.auroc"])


def test_edits_change_nothing_else_in_the_projects_own_settings() -> None:
    path = Path(__file__).resolve().parent.parent / "params.yaml"
    text = path.read_text()
    changed = with_values(
        text,
        {
            "train.autoencoder.latent": 16,
            "simulate.modes": ["energy"],
            "calibrate.choice.k_of_n": [[1, 2]],
            "base_release": "abc",
            "train.autoencoder.optimiser.learning_rate": 1e-05,
        },
    )
    assert changed is not None
    before, after = text.splitlines(), changed.splitlines()
    assert len(before) - len(after) == 1  # simulate.modes stood on two lines
    assert len(set(after) - set(before)) == 5
    assert json.dumps("abc")[1:-1] in changed
    assert "learning_rate: 1.0e-05, " in changed


def test_settings_of_the_same_name_are_not_each_others() -> None:
    from flows.tune_command import _untried

    sections = {"train": {"autoencoder": {"latent": 12}, "vae": {"latent": 12}}}
    now = Experiment(name="now", state="success", params=sections)
    tried = Experiment(name="latent-8", state="success", params={"train": sections["train"] | {"vae": {"latent": 8}}})
    text = "train: {autoencoder: {latent: 8}, vae: {latent: 12}}\n"
    (name,) = _untried([{"train.autoencoder.latent": 8}], [text], [now, tried])
    assert name.startswith("latent-8-")
    again = "train: {autoencoder: {latent: 12}, vae: {latent: 8}}\n"
    assert not _untried([{"train.vae.latent": 8}], [again], [now, tried])
    assert len(set(names_of(combinations([parse_axis('a=1,"1"')], None, 0)))) == 2


def test_what_a_winner_changes_is_written_as_it_was_tried(tmp_path: Path) -> None:
    import yaml

    from flows.tune.tables import differences
    from flows.workspace import override_params

    text = (Path(__file__).parents[1] / "params.yaml").read_text()
    for values in (
        {"train.autoencoder.contractive": {}},
        {"train.autoencoder.sparse": {"beta": 1.0}, "train.autoencoder.code_activation": "tanh"},
        {"train.autoencoder.contractive.weight": 0.2},
        {"train.autoencoder.optimiser": {"learning_rate": 0.001}},
    ):
        files = [tmp_path / "params.yaml", tmp_path / "applied.yaml"]
        for path in files:
            path.write_text(text)
        override_params(files[0], values)
        now, winner = (
            Experiment(name=name, state="success", params=yaml.safe_load(each))
            for name, each in (("now", text), ("winner", files[0].read_text()))
        )
        override_params(files[1], {key: value for key, _, value in differences(winner, now)})
        assert load_params(files[1]) == load_params(files[0]) != load_params(Path(__file__).parents[1] / "params.yaml")


def test_an_experiment_without_the_figure_comes_last() -> None:
    now = Experiment(name="now", state="success", params={"a": 1}, metrics={"tuning": {"d": {"auroc": 0.5}}})
    other = Experiment(name="a-2", state="success", params={"a": 2}, metrics={"tuning": {"e": {"auroc": 0.7}}})
    assert [each.name for each in ranked([other, now], "tuning:d.auroc", False)] == ["now", "a-2"]


def test_a_range_holds_its_ends_and_odd_values_are_a_mistake() -> None:
    import random

    source, span = random.Random(0), parse_axis("a=0.9..0.99999").span
    assert span is not None
    assert max(span.draw(source) for _ in range(20_000)) <= 0.99999
    for text in ("a=2025-13-45", "a=2025-02-30 10:00:00", "a=!!int x"):
        with pytest.raises(UserError, match="expected values that are YAML"):
            parse_axis(text)

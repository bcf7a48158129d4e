"""`hearken tune` on the real graph: the bottleneck on a small simulated fleet, swept as docs/tuning.md does."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from server_plant import ServerPlant
from test_retrain_failures import TINY

from flows.repository import run_git
from flows.tune.experiments import CLONE, Experiment, experiments, figure_of
from flows.workspace import Workspace
from pipeline.params import load_params

pytestmark = [pytest.mark.server, pytest.mark.slow]
KEY = "train.autoencoder.latent"
METRICS = ("tuning:detectors.autoencoder.validation_loss", "tuning:detectors.autoencoder.auroc")


def person(plant: ServerPlant, *arguments: str) -> str:
    """What a command of a person prints, which ends well."""
    done: subprocess.CompletedProcess[str] = plant.hearken(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def tried(plant: ServerPlant) -> list[Experiment]:
    """The present settings and every experiment."""
    folder = plant.settings.workspaces / CLONE
    head = run_git(folder, "rev-parse", "HEAD")
    return experiments(Workspace(folder=folder, commit=head, origin=plant.settings.repository, settings=plant.settings))


def test_a_sweep_of_the_bottleneck_trains_and_the_winner_is_applied(tmp_path: Path) -> None:
    plant = ServerPlant(tmp_path)
    plant.publish_repository(TINY | {"source.path": "data/demo"})
    asked = [word for metric in METRICS for word in ("--metric", metric)]
    person(plant, "tune", "--set", f"{KEY}=2,4", *asked)

    found = tried(plant)
    assert [each.name for each in found[1:]] == ["latent-2", "latent-4"]
    now, *others = ([figure_of(each, metric) for metric in METRICS] for each in found)
    (two, _), (four, _) = others
    assert two > four > 0, "a narrower code explains less"
    assert all(auroc is not None and 0 < auroc <= 1 for _, auroc in (now, *others))

    page = tmp_path / "bottleneck.html"
    person(plant, "tune", "plot", "--x", KEY, "--output", str(page), *asked)
    assert page.stat().st_size > 10_000
    assert "validation_loss" in page.read_text()
    params = plant.folder / "source" / "params.yaml"
    before = params.read_text()
    person(plant, "tune", "apply", "latent-4")
    assert load_params(params).train.autoencoder.latent == 4
    assert len(params.read_text().splitlines()) == len(before.splitlines())

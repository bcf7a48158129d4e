"""The whole story on a real Prefect server with two workers in folders of their own, and the remote in a third.

A fleet is learned and put into service; one machine fails, which is a page and no drift; the firmware of all changes,
which is a drift; the event starts `retrain`; the worker of the gpu pool trains, and goes on where its run was killed;
the gate lets the challenger into service; false alerts are back within the budget; a person goes back with one command.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import sqlalchemy as sa
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterName
from prefect.settings import PREFECT_API_URL, temporary_settings
from server_plant import ROOT, ServerPlant
from sqlalchemy.orm import Session

from flows import registry
from flows.database import open_database
from flows.repository import run_git
from flows.service.drifts import list_drifts
from flows.service.retrainings import list_retrainings
from flows.service.tables import Alert, DriftState, Notice, NoticeKind, RetrainingState, Standing
from pipeline.params import SimulateParams, load_params
from pipeline.simulate import simulate
from pipeline.store import read_json, read_table, sha256_file, write_json

FIRMWARE_DAY, LAST_DAY = 20, 38
STEP = 0.5  # days between two looks at the plant
SMALL = {
    "simulate.machines": 10,
    "simulate.days": LAST_DAY,
    "simulate.interval_seconds": 1200,
    "simulate.failures": 6,
    "simulate.log": {"late": 0.0, "missing": 0.0, "wrong": 0.0},
    "split.horizon_hours": 24,
    "split.run_in_hours": 6,
    "split.unseen_machine_share": 0.0,
    "train.autoencoder.optimiser.max_epochs": 20,
    "train.autoencoder.optimiser.patience": 20,
    "train.autoencoder.optimiser.batch_rows": 64,
    "train.vae.optimiser.max_epochs": 2,
    "train.threads": 1,
    "calibrate.draws": 50,
    "evaluate.chance_shifts": 20,
    "evaluate.false_episodes_per_machine_day": 0.6,  # so few machines show no lower rate in a few days
    "release.reference_rows": 2000,
    "retrain.hours_after_change": 120,  # fewer days of so few machines show no thresholds
    "retrain.cpu_fallback": False,
    "retrain.cool_down_hours": 0,  # days go by in minutes here
    "retrain.most_per_day": 9,
    "gate.seeds": 1,
    "gate.behind_baselines": 1,
}


@dataclass
class Story:
    """A plant at work, day by day."""

    plant: ServerPlant
    engine: sa.Engine
    client: Any
    deadline: float
    day: float = 0.0
    told: dict[str, Any] = field(default_factory=dict)
    promoted_at: float | None = None
    firmware_day: float | None = FIRMWARE_DAY  # from when on it is another one

    @property
    def simulated(self) -> SimulateParams:
        """The plant's settings."""
        settings = load_params(self.plant.folder / "source" / "params.yaml").simulate
        return type(settings).model_validate(settings.model_dump() | {"firmware_day": self.firmware_day})

    def arrive(self, until: float) -> None:
        """Spectra up to a day."""
        begin = float(int(self.day))  # a day's file is written anew, with what came since
        simulate(self.simulated, self.plant.landing, from_day=begin, days=until - begin)
        self.day = until

    def run(self, deployment: str, **parameters: object) -> Any:
        """A run of a deployment that ends well."""
        return self.plant.run(self.client, deployment, self.deadline, **parameters)

    def moment(self, day: float) -> dt.datetime:
        """A day of the plant as a moment."""
        return dt.datetime.combine(self.simulated.start, dt.time(), dt.UTC) + dt.timedelta(days=day)

    def pages(self, since: float, until: float) -> list[Alert]:
        """Alerts that people were paged of at once, by the day on which they paged."""
        told = sa.select(Notice.alert_id).where(Notice.kind == NoticeKind.PAGE)
        between = (Alert.paged_at >= self.moment(since), Alert.paged_at < self.moment(until))
        with Session(self.engine) as session:
            query = sa.select(Alert).where(Alert.id.in_(told), Alert.standing != Standing.WITHDRAWN, *between)
            return list(session.scalars(query))

    def failures(self, since: float, until: float) -> list[dict[str, Any]]:
        """Failures of the maintenance log, in some days."""
        log = read_table(self.plant.landing / "maintenance.parquet").to_pylist()
        failed = [entry for entry in log if entry["tag"] == "failure"]
        return [entry for entry in failed if self.moment(since) <= entry["start"] < self.moment(until)]

    def figures(self, since: float, until: float) -> tuple[float, int, int]:
        """False pages a day, failures caught, and failures, from one day to another."""
        failures = self.failures(since, until)
        horizon = dt.timedelta(days=1)
        pages = self.pages(since, until)
        caught, right = set[int](), set[int]()
        for at, failure in enumerate(failures):
            for page in pages:
                machine, paged = page.machine_id == failure["machine_id"], page.paged_at
                if machine and paged is not None and failure["start"] - horizon <= paged <= failure["start"]:
                    caught.add(at)
                    right.add(page.id)
        wrong = [page for page in pages if page.id not in right]
        return len(wrong) / (until - since), len(caught), len(failures)


def kill_a_training(story: Story) -> None:
    """Kill the run that trains, and the training itself, once there is a checkpoint."""
    folder = story.plant.folder / "gpu" / "home" / "workspaces" / "train-on-gpu"
    while time.monotonic() < story.deadline:
        training = [process for process in psutil.process_iter() if _works_in(process, folder)]
        if training and any(folder.glob("**/checkpoint.safetensors")):
            runs = {parent for process in training for parent in process.parents() if _is_flow_run(parent)}
            for process in [*runs, *training]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(signal.SIGKILL)
            assert runs, "the training belongs to a run"
            return
        time.sleep(0.02)
    raise AssertionError("no training was seen\n" + story.plant.logs())


def _works_in(process: psutil.Process, folder: Path) -> bool:
    with contextlib.suppress(psutil.Error, OSError):
        return Path(process.cwd()).is_relative_to(folder)
    return False


def _is_flow_run(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return "prefect.flow_engine" in process.cmdline() or "prefect.engine" in process.cmdline()
    return False


def learn_and_serve(story: Story) -> str:
    """A first release in service, and a quiet plant scored; the release's id."""
    story.arrive(FIRMWARE_DAY)
    here = {"source.path": str(story.plant.landing)}
    story.run("build/build", gpu_deployment=None, params_overrides=here)
    first = registry.promote(story.engine, "v1")
    story.run("score/score")
    return first.id


def change_and_look(story: Story) -> None:
    """The firmware changes; every STEP days spectra arrive, are scored, and the plant is looked at."""
    while not list_drifts(story.engine) and story.day < FIRMWARE_DAY + 3:
        story.arrive(story.day + STEP)
        story.run("score/score")
        story.run("monitor/monitor")
    assert list_drifts(story.engine), story.plant.logs()
    story.told["drift_detected_after_hours"] = (story.day - FIRMWARE_DAY) * 24
    assert list_retrainings(story.engine)[0].state is RetrainingState.WAITING, "half a day is too little to learn from"
    story.arrive(FIRMWARE_DAY + 5.5)
    story.run("score/score")
    story.run("monitor/monitor")


def retrained(story: Story, *, kill: bool) -> Any:
    """The run of `retrain` that the event started, once it has ended well."""
    if kill:
        kill_a_training(story)
    while time.monotonic() < story.deadline:
        named = DeploymentFilter(name=DeploymentFilterName(any_=["retrain"]))
        runs = story.client.read_flow_runs(deployment_filter=named)
        if runs:
            return story.plant.finish(story.client, runs[0].id, story.deadline)
        time.sleep(0.5)
    raise AssertionError("no retraining was started\n" + story.plant.logs())


def until_it_serves(story: Story, first: str) -> str:
    """Days go by until the challenger is in service; its id."""
    while (row := registry.in_service(story.engine)) is None or row.id == first:
        assert story.day < LAST_DAY - 3, f"{list_retrainings(story.engine)[0].error}\n{story.plant.logs()}"
        story.arrive(story.day + 2)
        story.run("score/score")
        story.run("monitor/monitor")
    story.promoted_at = story.day
    return row.id


@contextlib.contextmanager
def begun(url: str, folder: Path, settings: dict[str, Any]) -> Iterator[Story]:
    """A plant with these settings, its server and workers; nothing has happened yet."""
    plant = ServerPlant(folder, url)
    plant.publish_repository(settings)
    deadline = time.monotonic() + 1500
    engine = open_database(url)
    try:
        plant.serve(deadline)
        address = {PREFECT_API_URL: plant.common["PREFECT_API_URL"]}
        with temporary_settings(address), get_client(sync_client=True) as client:
            yield Story(plant, engine, client, deadline)
    finally:
        engine.dispose()
        plant.stop()


@pytest.fixture
def story(url: str, tmp_path: Path) -> Iterator[Story]:
    with begun(url, tmp_path, SMALL) as story:
        yield story


@pytest.mark.server
@pytest.mark.parametrize("url", ["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)], indirect=True)
def test_a_drift_is_told_from_a_fault_and_ends_with_a_better_release(story: Story) -> None:
    plant, engine = story.plant, story.engine
    first = learn_and_serve(story)
    story.run("monitor/monitor")
    assert not list_drifts(engine), "a plant in which machines fail one by one has not drifted"
    assert not list_retrainings(engine)

    change_and_look(story)
    (drift,) = list_drifts(engine)
    assert drift.verdict == "fleet"
    assert abs(drift.changed_at - story.moment(FIRMWARE_DAY)) <= dt.timedelta(hours=6)
    assert len(drift.machines) == SMALL["simulate.machines"]
    retrained(story, kill=True)
    (wish,) = list_retrainings(engine)
    assert wish.state in (RetrainingState.PROMOTED, RetrainingState.SHADOW), wish.error
    crashed = [run for run in plant.trainings(story.client) if run.state.is_crashed()]
    assert [run.state.name for run in plant.trainings(story.client)].count("Completed") == 1
    assert len(crashed) == 1
    assert "goes on" in (plant.folder / "gpu.log").read_text() or "from its checkpoint" in plant.logs()
    if wish.state is RetrainingState.SHADOW:
        row = registry.find_release(engine, wish.challenger_id)
        assert row.decision["verdict"] == "wait"
        assert row.shadow_until is not None
    second = until_it_serves(story, first)
    assert second == wish.challenger_id
    _was_trained_by_the_other_worker(story, second, first)
    assert list_drifts(engine)[0].state is DriftState.SETTLED
    with Session(engine) as session:
        explained = session.scalars(sa.select(Alert).where(Alert.drift_id == drift.id)).all()
        assert explained
        assert all(alert.standing is Standing.CLOSED for alert in explained)

    story.arrive(LAST_DAY)
    story.run("score/score")
    _tell(story, first, second)
    rolled = plant.hearken("releases", "rollback")
    assert rolled.returncode == 0, rolled.stderr
    assert registry.in_service(engine).id == first
    assert run_git(plant.folder / "repository.git", "tag").splitlines() == ["release/v1", "release/v2"]
    assert run_git(plant.folder / "repository.git", "branch", "--list", "build/*") == ""


def _was_trained_by_the_other_worker(story: Story, second: str, first: str) -> None:
    """The release holds, byte for byte, the models that the gpu worker trained."""
    release = story.plant.folder / "default" / "home" / "releases" / second
    models = read_json(release / "manifest.json")["models"]
    before = read_json(release.parent / first / "manifest.json")["models"]
    worker = story.plant.folder / "gpu" / "home" / "workspaces" / "train-on-gpu" / "data" / "models"
    for name in ("autoencoder", "vae"):
        assert models[name] == sha256_file(worker / name / "weights.safetensors") != before[name]
    assert not (story.plant.folder / "gpu" / "home" / "releases").exists()


def _tell(story: Story, first: str, second: str) -> None:
    """The story's figures, to a file that git ignores."""
    assert story.promoted_at is not None
    spans = {
        "before": (9.0, FIRMWARE_DAY),
        "during": (FIRMWARE_DAY, story.promoted_at),
        "after": (story.promoted_at, LAST_DAY),
    }
    for name, (since, until) in spans.items():
        pages, caught, failures = story.figures(since, until)
        story.told |= {
            f"false_pages_per_day_{name}": round(pages, 3),
            f"events_caught_{name}": caught,
            f"events_{name}": failures,
        }
    runs = story.client.read_flow_runs()
    story.told |= {
        "released": second,
        "releases": [first, second],
        "flow_runs": {str(run.id): f"{run.name}: {run.state.name}" for run in runs},
        "database": story.engine.dialect.name,
    }
    write_json(ROOT / "metrics" / "drift_story.json", story.told)
    print(json.dumps({name: value for name, value in story.told.items() if name != "flow_runs"}))
    budget = float(SMALL["evaluate.false_episodes_per_machine_day"]) * int(SMALL["simulate.machines"])
    assert story.told["false_pages_per_day_after"] <= budget

"""The flow `score`: here and on Dask the same bytes; a failure is one message; credentials stay where they are."""

from __future__ import annotations

import contextlib
import logging
import shutil
import time
from pathlib import Path

import pytest
import sqlalchemy as sa
from service_plant import ServicePlant

from flows.database import open_database
from flows.service.ledger import take_in
from flows.service.tables import ShardState
from flows.settings import QUIET
from flows.workspace import override_params
from pipeline.errors import HearkenError, ReleaseError, WorkspaceError
from pipeline.store import sha256_file
from pipeline.uploads import LandingZone

pytestmark = pytest.mark.server
SECRET = "k3y-never-shown"  # in no log, state, artifact, parameter or name of a run


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A Prefect server for the flows of this module."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**QUIET, "PREFECT_HOME": str(tmp_path_factory.mktemp("prefect"))}.items():
            patch.setenv(name, value)
        from prefect.testing.utilities import prefect_test_harness

        with prefect_test_harness(server_startup_timeout=120):
            yield


class Checkout:
    """A plant whose settings stand in a checkout, as a flow run finds them."""

    def __init__(self, folder: Path, built: Path) -> None:
        self.folder, self.checkout = folder, folder / "checkout"
        self.checkout.mkdir(parents=True)
        shutil.copyfile(built / "params.yaml", self.checkout / "params.yaml")
        self.set(shard_rows=500)
        self.database = f"sqlite:///{folder / 'home' / 'hearken.db'}"
        self.engine = open_database(self.database)
        self.plant = ServicePlant.of(folder, built, self.engine)

    def set(self, **score: object) -> None:
        override_params(self.checkout / "params.yaml", {f"score.{name}": value for name, value in score.items()})

    def run(self, patch: pytest.MonkeyPatch, landing: str | None = None, **options: object):
        from flows.score_flow import score

        patch.setenv("HEARKEN_HOME", str(self.folder / "home"))
        patch.setenv("HEARKEN_DATABASE_URL", self.database)
        patch.setenv("HEARKEN_LANDING", landing or str(self.plant.landing))
        return score.with_options(**options)(checkout=str(self.checkout))

    def log_bytes(self) -> dict[str, str]:
        """The hash of each file of the score log, hidden ones included."""
        log = self.plant.settings.score_log
        return {path.relative_to(log).as_posix(): sha256_file(path) for path in log.rglob("*") if path.is_file()}


@pytest.fixture
def checkout(tmp_path, built):
    made = Checkout(tmp_path / "plant", built)
    yield made
    made.engine.dispose()


def arrive(plant: ServicePlant, days: int = 20) -> None:
    """Days as uploads: some gathered into shards, one of them twice, in an order that is not that of their times."""
    for at in (*range(1, days, 2), *range(0, days, 2)):
        plant.upload(f"day-{at:03}", plant.days[at])
    plant.upload("again", plant.all_rows(slice(3, 5)))


def test_dask_writes_the_bytes_and_the_alerts_that_this_process_writes(server, tmp_path, built, monkeypatch):
    made = {engine: Checkout(tmp_path / engine, built) for engine in ("local", "dask")}
    runs = {}
    for engine, each in made.items():
        each.set(engine=engine, dask_workers=2, shard_rows=1500)
        arrive(each.plant, len(each.plant.days))
        runs[engine] = each.run(monkeypatch)
    here, there = made["local"], made["dask"]
    assert runs["local"].summary.shards == runs["dask"].summary.shards > 4
    assert runs["local"].summary.rows == sum(day.num_rows for day in here.plant.days)
    assert here.log_bytes() == there.log_bytes()
    assert here.plant.alerts() == there.plant.alerts()
    assert len(here.plant.alerts()) > 0
    assert {shard.state for shard in there.plant.shards()} == {ShardState.DONE}
    assert runs["dask"].lag.total_seconds() == 0
    for each in made.values():
        each.engine.dispose()


@pytest.mark.parametrize("engine", ["local", "dask"])
def test_credentials_of_the_landing_zone_are_shown_nowhere(engine, server, checkout, monkeypatch, caplog, capfd):
    import distributed
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import LogFilter

    arrive(checkout.plant, 4)
    with contextlib.ExitStack() as stack, caplog.at_level(logging.DEBUG):
        if engine == "dask":  # a scheduler that somebody else has started
            here = {"threads_per_worker": 1, "dashboard_address": None, "scheduler_kwargs": {"dashboard_address": ":0"}}
            cluster = stack.enter_context(distributed.LocalCluster(n_workers=1, **here))
            checkout.set(engine=engine, dask_address=cluster.scheduler_address)
        run = checkout.run(monkeypatch, f"file://user:{SECRET}@{checkout.plant.landing}")
    assert run.summary.shards > 0
    time.sleep(3)  # logs and task runs reach the server in batches
    with get_client(sync_client=True) as client:
        kept = [
            *client.read_flow_runs(), *client.read_task_runs(), *client.read_artifacts(),
            *client.read_logs(LogFilter(), limit=200),
        ]  # fmt: skip
    assert any(getattr(each, "name", "").startswith("0000") for each in kept)  # a task run, named by its shard
    said = capfd.readouterr()
    for text in (caplog.text, said.out, said.err, *(repr(each.model_dump()) for each in kept)):
        assert SECRET not in text


def test_a_run_shows_its_figures_as_an_artifact(server, checkout, monkeypatch):
    from prefect.artifacts import Artifact

    arrive(checkout.plant, 4)
    (checkout.plant.spectra / "<b>|x.parquet").symlink_to("/etc/passwd")
    run = checkout.run(monkeypatch)
    shown = Artifact.get("score-run")
    assert shown.description == run.summary.line
    assert f"| spectra scored | {run.summary.rows:,} |" in shown.data
    assert "| behind the newest upload | 0:00:00 |" in shown.data
    assert "| spectra/&lt;b&gt;&#124;x.parquet | file: got a link that leaves the folder" in shown.data


def test_no_release_in_service_is_one_message(server, checkout, monkeypatch, caplog):
    with checkout.engine.begin() as connection:
        connection.execute(sa.text("UPDATE releases SET state = 'retired'"))
    with pytest.raises(ReleaseError, match="got none in service"):
        checkout.run(monkeypatch)
    assert "Traceback" not in caplog.text
    assert "Failed('release: got none in service" in caplog.text


@pytest.mark.parametrize("engine", ["local", "dask"])
def test_a_shard_that_cannot_be_written_fails_the_run_and_the_next_one_scores_it(
    engine, server, checkout, monkeypatch, caplog
):
    checkout.set(engine=engine, dask_workers=1)
    arrive(checkout.plant, 4)
    log = checkout.plant.settings.score_log
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("a file stands where the folder belongs")
    with pytest.raises(HearkenError, match=r"shards? (is|are) still to be scored: shard 0000"):
        checkout.run(monkeypatch)
    assert "Traceback" not in caplog.text
    assert {shard.state for shard in checkout.plant.shards()} == {ShardState.PLANNED}
    assert all(shard.attempts == 0 for shard in checkout.plant.shards())
    log.unlink()
    assert checkout.run(monkeypatch).error is None
    assert checkout.plant.log().num_rows == sum(
        day.num_rows for day in checkout.plant.days[:5]
    )  # `again` holds the fifth


def test_a_run_that_takes_too_long_is_ended_and_the_next_one_goes_on(server, checkout, monkeypatch):
    checkout.set(shard_rows=1, lease_minutes=0.01)
    plant = checkout.plant
    for at, day in enumerate(plant.days):
        for part in range(4):  # 160 shards: more than two seconds' work
            plant.upload(f"day-{at:03}-{part}", day.slice(part * day.num_rows // 4, day.num_rows // 4))
    take_in(checkout.engine, LandingZone.at(plant.landing), plant.params.score.model_copy(update={"shard_rows": 1}))
    with pytest.raises(Exception, match="timed out after 2"):
        checkout.run(monkeypatch, timeout_seconds=2)
    assert ShardState.PLANNED in {shard.state for shard in plant.shards()}
    checkout.set(lease_minutes=15)
    time.sleep(1)  # a lease that was taken in the moment of the alarm has run out
    assert checkout.run(monkeypatch).error is None
    assert {shard.state for shard in plant.shards()} == {ShardState.DONE}
    assert plant.log().num_rows == plant.all_rows().num_rows


def test_a_dask_worker_that_dies_fails_the_run_and_nothing_is_lost(server, checkout, monkeypatch):
    import os
    import signal
    import threading

    import psutil

    checkout.set(engine="dask", dask_workers=1, shard_rows=1)
    arrive(checkout.plant, 12)
    before = {child.pid for child in psutil.Process().children(recursive=True)}

    def kill_the_worker() -> None:
        log = checkout.plant.settings.score_log
        while not list(log.glob("*/*")):
            time.sleep(0.02)
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if child.pid not in before and "spawn_main" in " ".join(child.cmdline()):
                    os.kill(child.pid, signal.SIGKILL)

    killer = threading.Thread(target=kill_the_worker)
    killer.start()
    with pytest.raises(HearkenError, match="its Dask worker is lost"):
        checkout.run(monkeypatch)
    killer.join()
    assert checkout.run(monkeypatch).error is None
    assert checkout.plant.log().num_rows == sum(day.num_rows for day in checkout.plant.days[:12])


def test_a_dask_address_where_nobody_answers_is_one_message(server, checkout, monkeypatch):
    import dask.config

    checkout.set(engine="dask", dask_address="tcp://127.0.0.1:9")
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "1s"}),
        pytest.raises(WorkspaceError, match=r"expected a scheduler with workers, at tcp://127\.0\.0\.1:9"),
    ):
        checkout.run(monkeypatch)


def test_a_prefect_secret_says_whom_to_tell_and_the_environment_where_there_is_none(server):
    from prefect.blocks.system import Secret

    from flows.score_flow import SECRETS, addresses

    environment = {"HEARKEN_NOTIFY_PAGE": "json://10.0.0.1/", "HEARKEN_NOTIFY_LOW": "json://10.0.0.2/"}
    Secret(value=f"json://crew:{SECRET}@10.0.0.3/").save(SECRETS[0])
    found = addresses(environment)
    assert [address.get_secret_value() for address in found.page] == [f"json://crew:{SECRET}@10.0.0.3/"]
    assert [address.get_secret_value() for address in found.low] == ["json://10.0.0.2/"]
    assert SECRET not in repr(found)

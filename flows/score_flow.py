"""What has arrived, scored with the release in service: each shard is a Prefect task, here or on Dask workers.

Who tries again: Prefect retries nothing here. A shard that could not be scored (a full disk, a lost Dask worker) stays
in the ledger, and the next run of the schedule scores it; a run that dies leaves leases that run out; a broken upload
waits for other bytes. So a run that is cut off loses the shards in its hands and no others.
"""

from __future__ import annotations

import contextlib
import faulthandler
import html
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import pyarrow as pa
from prefect import flow, get_run_logger, runtime, task
from prefect.artifacts import create_markdown_artifact
from prefect.blocks.system import Secret
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture
from prefect.states import Failed

from flows.runs import failed, hide_empty_tracebacks, settings_of_run
from flows.score_run import FinishedRun, run_scoring, run_steps
from flows.service.delivery import Addresses
from flows.service.scorer import Submit, WorkerLost
from pipeline import score_shard as shard
from pipeline.errors import HearkenError, WorkspaceError
from pipeline.params import ScoreParams, load_params
from pipeline.report_page.names import shortened, visible
from pipeline.score_shard import ShardJob, ShardResult

# A backlog of days is worked off within it; what is left goes to the next run. Only a hung run is stopped by it.
TIMEOUT_SECONDS = 2 * 3600
SECRETS = ("hearken-notify-page", "hearken-notify-low")
GRACE_SECONDS = 300  # a hang below Python hears no timeout: then the process ends itself
SHOWN_NAMES, LONG = 20, 200
# Dask workers: as many threads in BLAS as here, or the last bits of sums differ; a shard whose worker died goes back
# to the ledger, not to another worker beside one that may still write.
LIKE_HERE: dict[str, Any] = {
    "distributed.scheduler.allowed-failures": 0,
    **{
        f"distributed.nanny.pre-spawn-environ.{name}": None
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    },
}


@flow(name="score", persist_result=False, timeout_seconds=TIMEOUT_SECONDS)
def score(checkout: str | None = None) -> FinishedRun | State[Any]:
    """Score all that has arrived with the release in service, and let the alert policy see it.

    Args:
        checkout: whose params.yaml to use; None: the current folder.
    """
    try:
        settings = settings_of_run(checkout)
        params = load_params(settings.checkout / "params.yaml")
        logger = get_run_logger()
        with ended_if_hung(), scorers(params.score) as (submit, at_once):
            told = addresses(os.environ)
            run = run_scoring(settings, params, logger.info, submit=submit, at_once=at_once, addresses=told)
        run_steps({"the artifact of the run": lambda: publish(run)}, logger.warning)
        return failed(run.error) if run.error is not None else run
    except HearkenError as error:
        return failed(error)


def addresses(environment: Mapping[str, str]) -> Addresses:
    """Whom to tell of alerts: Prefect Secrets `hearken-notify-page` and `hearken-notify-low`, or the environment."""
    own = Addresses.from_environment(environment)
    page, low = (_secret(name) for name in SECRETS)
    return Addresses(
        page=own.page if page is None else Addresses.of(page=page, low=None).page,
        low=own.low if low is None else Addresses.of(page=None, low=low).low,
    )


def _secret(name: str) -> str | None:
    """The text of a Secret block; None where there is none of this name."""
    try:
        block = cast("Secret[str]", Secret.load(name))
    except ValueError:
        return None
    return str(block.get())


@task(name="score shard", task_run_name="{job.name}", cache_policy=NO_CACHE, persist_result=False, retries=0)
def score_shard(job: ShardJob) -> ShardResult | State[object]:
    """Score one shard; a failure that is no bug becomes a failed state with its message, not a traceback."""
    hide_empty_tracebacks()  # on a worker
    try:
        return shard.score_shard(job)
    except (HearkenError, OSError, MemoryError, pa.ArrowException) as error:
        return Failed(message=str(error) or type(error).__name__, data=error)


@contextlib.contextmanager
def ended_if_hung() -> Iterator[None]:
    """Where a worker runs the flow, end its process some time after the flow's timeout, with every thread's stack."""
    if runtime.deployment.id is None:
        yield
        return
    faulthandler.dump_traceback_later(TIMEOUT_SECONDS + GRACE_SECONDS, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


@contextlib.contextmanager
def scorers(params: ScoreParams) -> Iterator[tuple[Submit, int]]:
    """Who scores: how a job is handed over, and how many at a time.

    Raises:
        WorkspaceError: no Dask scheduler at the address, or one without workers.
    """
    if params.engine == "local":
        yield InThisRun, 1
        return
    with OnDask(params) as dask:
        yield dask.submit, dask.at_once


@dataclass(frozen=True)
class InThisRun:
    """A job that this process works on when its result is asked for: in the main thread, where a cancellation comes."""

    job: ShardJob

    def result(self) -> ShardResult:
        """Score the shard."""
        state: State[Any] = score_shard(self.job, return_state=True)
        return _value(state.result(raise_on_failure=False))


@dataclass(frozen=True)
class OnWorker:
    """A job that a Dask worker works on."""

    future: PrefectFuture[Any]

    def result(self) -> ShardResult:
        """Wait for the worker.

        Raises:
            WorkerLost: it died, maybe of this job.
        """
        from distributed.client import FutureCancelledError
        from distributed.scheduler import KilledWorker

        try:
            return _value(self.future.result(raise_on_failure=False))
        except (KilledWorker, FutureCancelledError):
            raise WorkerLost("its Dask worker is lost") from None


class OnDask:
    """Workers of a Dask scheduler, or processes of this machine, which start with the first job: few runs have one."""

    def __init__(self, params: ScoreParams) -> None:
        self.params = params
        self._stack = contextlib.ExitStack()
        self._runner: Any = None
        # one more than there are workers: none waits while this process writes into the database
        self.at_once = params.dask_workers + 1

    def __enter__(self) -> OnDask:
        if self.params.dask_address is not None:
            self.at_once = self._connect() + 1
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.close()

    def submit(self, job: ShardJob) -> OnWorker:
        """Hand a job to the workers."""
        if self._runner is None:
            self._connect()
        return OnWorker(self._runner.submit(score_shard, {"job": job}))

    def _connect(self) -> int:
        """Start or reach the workers; their number."""
        import dask.config
        from prefect_dask.task_runners import DaskTaskRunner

        address, workers = self.params.dask_address, self.params.dask_workers
        runner = DaskTaskRunner(address=address) if address else DaskTaskRunner(cluster_kwargs=processes(workers))
        try:
            self._stack.enter_context(dask.config.set(LIKE_HERE))
            self._runner = self._stack.enter_context(runner)
            client: Any = runner.client
            client.wait_for_workers(1, timeout=60)
            return len(client.nthreads())
        except (OSError, ValueError) as error:
            self._stack.close()
            said = (str(error).splitlines() or [type(error).__name__])[0]
            raise WorkspaceError(f"Dask: got '{said}', expected a scheduler with workers, at {address}.") from None


def processes(workers: int) -> dict[str, Any]:
    """A Dask cluster of processes on this machine, one job at a time each, without Dask's pages."""
    return {
        "n_workers": workers,
        "threads_per_worker": 1,
        "processes": True,
        "dashboard_address": None,
        "scheduler_kwargs": {"dashboard_address": "127.0.0.1:0"},  # it serves its health all the same: any free port
    }


def _value(found: ShardResult | BaseException) -> ShardResult:
    if isinstance(found, BaseException):
        raise found
    return found


def publish(run: FinishedRun) -> None:
    """Prefect's artifact of the run: a table of its figures, and what was set aside."""
    create_markdown_artifact(as_markdown(run), key="score-run", description=run.summary.line)


def as_markdown(run: FinishedRun) -> str:
    """The figures of a run as a table of markdown; names from data are shown, not obeyed.

    >>> from flows.service.scorer import RunSummary
    >>> print(as_markdown(FinishedRun(RunSummary("ab12", rows=9, set_aside={"a|<b>": "no rows"}), None, None)))
    | what | value |
    |---|---|
    | release | ab12 |
    | new uploads | 0 |
    | spectra scored | 9 |
    | of these without a score | 0 |
    | repeated and left out | 0 |
    | behind the newest upload | unknown |
    | newest row | none |
    | alerts opened | 0 |
    | pages | 0 |
    | set aside | 1 |
    | seconds | 0.0 |
    <BLANKLINE>
    | set aside | why |
    |---|---|
    | a&#124;&lt;b&gt; | no rows |
    """
    summary = run.summary
    aside = {**summary.intake.refused, **summary.set_aside}
    figures = {
        "release": summary.release,
        "new uploads": f"{summary.intake.planned:,}",
        "spectra scored": f"{summary.rows:,}",
        "of these without a score": f"{summary.unusable:,}",
        "repeated and left out": f"{summary.repeated:,}",
        "behind the newest upload": "unknown" if run.lag is None else str(run.lag),
        "newest row": "none" if run.newest_at is None else f"{run.newest_at:%Y-%m-%d %H:%M:%S} UTC",
        "alerts opened": summary.opened,
        "pages": summary.paged,
        "set aside": f"{summary.intake.broken + len(aside):,}",
        "seconds": f"{summary.seconds:.1f}",
    }
    lines = ["| what | value |", "|---|---|", *(f"| {name} | {value} |" for name, value in figures.items())]
    if aside:
        lines += ["", "| set aside | why |", "|---|---|"]
        lines += [f"| {_cell(name)} | {_cell(why)} |" for name, why in list(aside.items())[:SHOWN_NAMES]]
        if len(aside) > SHOWN_NAMES:
            lines.append(f"| and {len(aside) - SHOWN_NAMES:,} more | |")
    return "\n".join(lines)


def _cell(text: str) -> str:
    """Text that neither markdown nor HTML reads as anything but text."""
    shown = html.escape(visible(shortened(text, LONG), keep=""))
    return re.sub(r"[|`*_~\[\]\\]", lambda found: f"&#{ord(found.group())};", shown)

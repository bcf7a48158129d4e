"""A scoring run: takes in what has arrived, scores it shard by shard, oldest first, and lets the alert policy see it.

Where shards are scored is the caller's choice: `submit` hands a job to this process, to a pool, or to other machines.
Everything else happens here: leases, publishing, and the alert book.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import pyarrow as pa
from sqlalchemy.engine import Engine

from flows.registry import ReleaseRow, find_release, serving
from flows.service import alert_book, ledger
from flows.service.answers_export import added_log
from flows.service.leases import signs_of_life
from flows.service.ledger import Intake, Lease
from flows.settings import Settings
from pipeline.moments import microseconds
from pipeline.params import Params
from pipeline.release import Release
from pipeline.score_shard import ShardJob, ShardResult, checked_release, discard, drop, publish, score_shard
from pipeline.uploads import LandingZone


class WorkerLost(OSError):
    """Whoever scored a shard died of it, maybe: that counts as an attempt."""


class Submitted(Protocol):
    """A job that is being worked on."""

    def result(self) -> ShardResult:
        """What it came to; waits for it."""
        ...


Submit = Callable[[ShardJob], Submitted]


@dataclass(frozen=True)
class InThisProcess:
    """A job that is worked on when its result is asked for."""

    job: ShardJob

    def result(self) -> ShardResult:
        """Score the shard."""
        return score_shard(self.job)


@dataclass
class RunSummary:
    """What a run came to."""

    release: str
    intake: Intake = field(default_factory=Intake)
    shards: int = 0
    rows: int = 0
    unusable: int = 0
    repeated: int = 0
    set_aside: dict[str, str] = field(default_factory=dict)  # uploads that turned out broken while they were scored
    opened: int = 0
    paged: int = 0
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)  # of shards that are still to be scored

    @property
    def line(self) -> str:
        """The run in one sentence."""
        pages = "1 page" if self.paged == 1 else f"{self.paged} pages"
        said = (
            f"{self.rows:,} spectra of {self.intake.planned} new uploads scored by release {self.release} "
            f"in {self.seconds:.1f} s: {self.opened} alerts opened, {pages}"
        )
        more = {
            "without a score": self.unusable,
            "repeated and left out": self.repeated,
            "uploads set aside": self.intake.broken + len(self.set_aside),
            "files refused": len(self.intake.refused),
            "shards failed": len(self.failures),
        }
        return said + "".join(f"; {what}: {count:,}" for what, count in more.items() if count)


def score_arrivals(
    engine: Engine,
    settings: Settings,
    params: Params,
    *,
    submit: Submit = InThisProcess,
    at_once: int = 1,
    device: str = "auto",
) -> RunSummary:
    """Score all that has arrived and is not in the score log yet, with the release in service.

    Args:
        engine: of the database.
        settings: where landing zone, releases and score log are.
        params: sections `score` and `ingest`, and `source.path`.
        submit: hands a job to whoever scores it.
        at_once: jobs that are worked on at the same time.
        device: where scores are computed.

    Raises:
        ReleaseError: none is in service, or its files differ from its manifest.
        ContractError: no landing zone, or its fleet.yaml or maintenance log is wrong.
    """
    begun = time.perf_counter()
    run = _Run(engine, settings, params, serving(engine), submit, device)
    run.summary.intake = ledger.take_in(engine, run.zone, params.score, run.read_as)
    with signs_of_life(params.score.lease_minutes, run.renew):
        run.work_off(at_once)
    run.hear_silence()
    run.summary.seconds = time.perf_counter() - begun
    return run.summary


def reading_of(zone: LandingZone, release_id: str) -> str:
    """What uploads are read as: a hash of fleet.yaml, time zone and release, as the ledger keeps it of broken ones."""
    spec = "" if zone.spec is None else zone.spec.model_dump_json()
    return hashlib.sha256(f"{spec}\0{zone.timezone}\0{release_id}".encode()).hexdigest()[:16]


class _Run:
    """One run and its leases."""

    def __init__(
        self, engine: Engine, settings: Settings, params: Params, row: ReleaseRow, submit: Submit, device: str
    ) -> None:
        self.engine, self.settings, self.params, self.submit, self.device = engine, settings, params, submit, device
        self.row, self.owner = row, ledger.new_owner()
        self.summary = RunSummary(row.id)
        self.landing = str(settings.landing_place(params.source.path))
        self.zone = LandingZone.at(self.landing, params.ingest.timezone)
        self.read_as = reading_of(self.zone, row.id)
        self.maintenance = self.zone.maintenance()
        self.added = added_log(engine)
        self.held = dict[int, Lease]()
        self.release(row.id)  # a damaged one is refused before anything is claimed

    def release(self, identity: str) -> Release:
        """A release of the registry, checked once."""
        row = find_release(self.engine, identity)
        return checked_release(str(self.settings.releases / row.id), row.id, self.device)

    def work_off(self, at_once: int) -> None:
        """Score and apply until no shard is left that this run may take."""
        working = deque[tuple[Lease, ShardJob, Submitted]]()
        try:
            while True:
                while len(working) < at_once and not self.summary.failures and (lease := self._claim()) is not None:
                    job = self._job(lease)
                    working.append((lease, job, self.submit(job)))
                if not working:
                    self._apply()
                    return
                self._finish(*working.popleft())
                self._apply()
        except BaseException:
            for lease in list(self.held.values()):
                with contextlib.suppress(Exception):  # the error that ends the run says more
                    ledger.give_back(self.engine, lease, "the run ended before the shard was scored")
            raise

    def _claim(self) -> Lease | None:
        log = self.settings.score_log
        lease = ledger.claim(self.engine, self.params.score, self.owner, lambda name: discard(log, name), self.read_as)
        if lease is not None:
            self.held[lease.shard_id] = lease
        return lease

    def _job(self, lease: Lease) -> ShardJob:
        return ShardJob(
            name=lease.name,
            landing=self.landing,
            timezone=self.params.ingest.timezone,
            uploads=lease.uploads,
            release=str(self.settings.releases / self.row.id),
            release_id=self.row.id,
            log=str(self.settings.score_log),
            believed_until_us=microseconds(lease.believed_until),
            added_log=self.added,
            device=self.device,
        )

    def _finish(self, lease: Lease, job: ShardJob, work: Submitted) -> None:
        """Enter a job's result; a failure of the machine gives the shard back and ends the claiming."""
        log, summary = Path(job.log), self.summary
        try:
            result = work.result()
            settled = ledger.settle(
                self.engine, lease, result, job.release_id, lambda: publish(log, job.name, result.token, result.days)
            )
        except (OSError, MemoryError, pa.ArrowException) as error:
            summary.failures.append(f"shard {job.name}: {error}")
            ledger.give_back(self.engine, lease, str(error), counts=isinstance(error, WorkerLost))
            del self.held[lease.shard_id]
            return
        del self.held[lease.shard_id]
        summary.set_aside |= result.broken
        if settled:
            summary.shards += 1
            summary.rows += result.rows
            summary.unusable += result.unusable
            summary.repeated += result.repeated
        else:  # another has taken the shard over, and clears no more behind us
            drop(log, job.name, result.token, result.days)

    def _apply(self) -> None:
        log = self.settings.score_log
        while (applied := alert_book.apply_next(self.engine, log, self.release, self.maintenance)) is not None:
            self.summary.opened += applied.opened
            self.summary.paged += applied.paged

    def hear_silence(self) -> None:
        """Quiet and silence, once nothing waits."""
        heard = alert_book.hear_silence(self.engine, self.release(self.row.id), self.maintenance)
        if heard is not None:
            self.summary.opened += heard.opened
            self.summary.paged += heard.paged

    def renew(self) -> None:
        """Renew the leases that are held."""
        ledger.renew(self.engine, list(self.held.values()), self.params.score)

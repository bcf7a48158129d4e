"""What a data set's own files say of any rows of its machines: maintenance log, failures, and people's answers.

Shape legend: N rows, K failures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.answers import read_feedback
from pipeline.errors import ContractError
from pipeline.log_status import IntegerN, LogStatus, Timeline, alerts_of, intervals_of, log_status
from pipeline.maintenance import failures_of
from pipeline.params import SplitParams
from pipeline.roles import teaching
from pipeline.schema import FAILURE_SCHEMA, MAINTENANCE_SCHEMA, MICROSECONDS_PER_HOUR, BoolN, IntN, Role
from pipeline.store import read_table

SOUND = (LogStatus.HEALTHY, LogStatus.UNCONFIRMED)  # as far as anybody knows


@dataclass(frozen=True)
class PlantLog:
    """The log (MAINTENANCE_SCHEMA), its failures (FAILURE_SCHEMA), and answered alerts (FEEDBACK_SCHEMA)."""

    maintenance: pa.Table
    failures: pa.Table
    feedback: pa.Table

    @classmethod
    def of(cls, data_set: Path, horizon_hours: float) -> PlantLog:
        """The files of a data set; without `failures.parquet` every failure of its log is there to test.

        Raises:
            ContractError: no maintenance log, or a file that is damaged.
        """
        path = data_set / "maintenance.parquet"
        if not path.is_file():
            expected = "maintenance.parquet, as `hearken ingest` writes it"
            raise ContractError.of("maintenance log", got="no file", expected=expected, where=data_set)
        maintenance = read_table(path, schema=MAINTENANCE_SCHEMA)
        known = data_set / "failures.parquet"
        if known.is_file():
            failures = read_table(known, schema=FAILURE_SCHEMA)
        else:
            failures = failures_of(maintenance, None, horizon_hours=horizon_hours, tune_share=0.0)
        return cls(maintenance, failures, read_feedback(data_set))

    def statuses(
        self,
        machine_N: IntegerN,
        time_us_N: IntN,
        machines: Sequence[str],
        ok_N: BoolN,
        newest_us_N: IntN | int,
        split: SplitParams,
        timeline: Timeline | None = None,
    ) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.int32]]:
        """LogStatus of each row, as stage `split` has it, and the failure whose horizon it lies in (-1: none).

        Args:
            machine_N: codes into `machines`.
            time_us_N: microseconds since 1970 UTC.
            machines: names.
            ok_N: not quarantined.
            newest_us_N: what the age of a row is measured from.
            split: horizon, run-in, and since when the fleet is as it is.
            timeline: the rows' order, where the caller has it already.
        """
        timeline = timeline or Timeline(machine_N, time_us_N, len(machines))
        status_N, owner_N = log_status(
            timeline, time_us_N, ok_N, newest_us_N, machines, self.maintenance, self.failures, split
        )
        confirmed = alerts_of(self.feedback, "confirmed", int(time_us_N.max(initial=0)), machines)
        ill = confirmed.begun_before(round(split.horizon_hours * MICROSECONDS_PER_HOUR))
        status_N[timeline.covered(ill, closed=True) & (status_N < LogStatus.ALERT)] = LogStatus.ALERT
        return status_N, owner_N

    def tunes(self, unseen: Sequence[str], teaching_share: float = 0.0) -> BoolN:
        """Which failures (K,) may tune: role tune, of a machine that is not held out, and not taught to a network."""
        role_K = np.array([role == Role.TUNE for role in self.failures["role"].to_pylist()], bool)
        held_K = np.isin(np.array(self.failures["machine_id"].to_pylist(), dtype=object), list(unseen))
        return np.asarray(role_K & ~held_K & ~teaching(self.failures, teaching_share))

    def failed_us(self, chosen_K: BoolN) -> dict[str, int]:
        """When each of some failures failed, by its id."""
        names, time_us_K = self.failures["failure_id"].to_pylist(), self.times_us().tolist()
        return {name: time for name, time, chosen in zip(names, time_us_K, chosen_K, strict=True) if chosen}

    def times_us(self) -> IntN:
        """Moments (K,) of the failures."""
        return intervals_of(self.failures, "time", "end", ()).start_K

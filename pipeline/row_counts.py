"""Rows of the status table counted as they stream by: by status, reason and machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.schema import IntN, codes_and_names, times_us

LISTED = 10
STATUSES = ("ok", "suspect", "quarantined")
OK, SUSPECT, QUARANTINED = range(3)


@dataclass
class Counts:
    """Rows by what became of them; a row may have several reasons."""

    rows: int
    by_status: IntN
    by_reason: dict[str, dict[str, int]]  # status: reason: rows
    usable_by_machine: dict[str, int]
    aside_by_machine: dict[str, int]
    given_back: int
    first_us: int
    last_us: int

    @classmethod
    def none(cls) -> Counts:
        """Of no rows."""
        far = np.iinfo(np.int64)
        return cls(0, np.zeros(len(STATUSES), np.int64), {}, {}, {}, 0, far.max, far.min)

    def add(self, table: pa.Table) -> pa.Table:
        """Count the rows of a piece of the status table, and hand it on."""
        status_N, statuses = codes_and_names(table["status"])
        reason_N, reasons = codes_and_names(table["reason"])
        machine_N, machines = codes_and_names(table["machine_id"])
        time_us_N = times_us(table["timestamp"])
        status_N = np.array([STATUSES.index(name) for name in statuses] or [OK])[status_N]
        self.rows += table.num_rows
        self.by_status += np.bincount(status_N, minlength=len(STATUSES))
        trusted = time_us_N[status_N != QUARANTINED]
        if len(trusted):
            self.first_us, self.last_us = min(self.first_us, int(trusted.min())), max(self.last_us, int(trusted.max()))
        for status in (SUSPECT, QUARANTINED):
            counts = np.bincount(reason_N[status_N == status], minlength=len(reasons)).tolist()
            found = self.by_reason.setdefault(STATUSES[status], {})
            for joined_reasons, count in zip(reasons, counts, strict=True):
                for reason in filter(None, joined_reasons.split("+") if count else []):
                    found[reason] = found.get(reason, 0) + count
        for mask_N, by_machine in (
            (status_N == OK, self.usable_by_machine),
            (status_N != OK, self.aside_by_machine),
        ):
            for machine, count in zip(machines, np.bincount(machine_N[mask_N], minlength=len(machines)), strict=True):
                by_machine[machine] = by_machine.get(machine, 0) + int(count)
        return table

    def metrics(self) -> dict[str, Any]:
        """What metrics/validation.json says of rows."""
        worst = sorted(self.aside_by_machine.items(), key=lambda item: (-item[1], item[0]))[:LISTED]
        by_reason = {status: dict(sorted(found.items())) for status, found in self.by_reason.items()}
        return {
            "rows": self.rows,
            "quarantined": int(self.by_status[QUARANTINED]),
            "suspect": int(self.by_status[SUSPECT]),
            "given_back": self.given_back,
            "first": _moment(self.first_us) if self.first_us <= self.last_us else None,  # quarantined clocks apart
            "last": _moment(self.last_us) if self.first_us <= self.last_us else None,
            "by_reason": by_reason.get("quarantined", {}),
            "suspect_by_reason": by_reason.get("suspect", {}),
            "by_machine": {machine: count for machine, count in worst if count},
        }


def _moment(time_us: int) -> str:
    return f"{np.datetime64(time_us, 'us')}Z"

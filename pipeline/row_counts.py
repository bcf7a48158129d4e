"""Rows of the status table counted as they stream by: by status, reason and machine.

Shape legend: N rows, M machines, S statuses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.moments import iso_exact
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
        status_N = np.array([STATUSES.index(name) for name in statuses] or [OK], np.int32)[status_N]
        rows_MS = np.bincount(machine_N * len(STATUSES) + status_N, minlength=len(machines) * len(STATUSES))
        rows_MS = rows_MS.reshape(-1, len(STATUSES))
        self.rows += table.num_rows
        self.by_status += rows_MS.sum(axis=0)
        trusted = time_us_N[status_N != QUARANTINED] if rows_MS[:, QUARANTINED].any() else time_us_N
        if len(trusted):
            self.first_us, self.last_us = min(self.first_us, int(trusted.min())), max(self.last_us, int(trusted.max()))
        for status in (SUSPECT, QUARANTINED):
            found = self.by_reason.setdefault(STATUSES[status], {})
            of_status = reason_N[status_N == status] if rows_MS[:, status].any() else reason_N[:0]
            for code, count in enumerate(np.bincount(of_status).tolist()):
                for reason in filter(None, reasons[code].split("+") if count else []):
                    found[reason] = found.get(reason, 0) + count
        for machine, rows_S in zip(machines, rows_MS.tolist(), strict=True):
            usable = rows_S[OK]
            self.usable_by_machine[machine] = self.usable_by_machine.get(machine, 0) + usable
            self.aside_by_machine[machine] = self.aside_by_machine.get(machine, 0) + sum(rows_S) - usable
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
            "first": iso_exact(self.first_us) if self.first_us <= self.last_us else None,  # quarantined clocks apart
            "last": iso_exact(self.last_us) if self.first_us <= self.last_us else None,
            "by_reason": by_reason.get("quarantined", {}),
            "suspect_by_reason": by_reason.get("suspect", {}),
            "by_machine": {machine: count for machine, count in worst if count},
        }

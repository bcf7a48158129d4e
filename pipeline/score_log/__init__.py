"""The score log as a folder: a folder of Parquet files per UTC day, of which each row stands in one file only.

The service writes `<log>/<YYYY-MM-DD>/<shard>.parquet`, `hearken score --output` writes `<log>/<YYYY-MM-DD>.parquet`.
Names that begin with "." or "_" are not of the log.

    log_days(log) -> list[str]
    over_days(log, days, read) -> list
    keys_between(log, since_us, until_us, machines, without) -> (machine names, code_N, time_us_N)
    machine_rows(log, machine, since, until) -> pa.Table
    compact_day(log, day, may_change) -> Compacted | None
    remove_days(log, before) -> list[str]
    releases_of(log) -> set[str]
"""

from pipeline.score_log.compact import Compacted, compact_day, remove_days
from pipeline.score_log.files import days_between, is_day, log_days, over_days
from pipeline.score_log.read import keys_between, machine_names, machine_rows, newest_row_us
from pipeline.score_log.releases import releases_of

__all__ = [
    "Compacted",
    "compact_day",
    "days_between",
    "is_day",
    "keys_between",
    "log_days",
    "machine_names",
    "machine_rows",
    "newest_row_us",
    "over_days",
    "releases_of",
    "remove_days",
]

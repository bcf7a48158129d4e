"""Great Expectations on the facts of every row: which rows are quarantined, and why.

The suite is `pipeline/expectations.json`. A rule of severity `critical` quarantines the rows that its result names, a
rule with `meta.action` `reject` refuses the data set, any other rule warns. Adding a rule to the file is all it takes.

Shape legend: N rows, F frequency bins.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from pipeline.errors import ContractError, HearkenError, run_reporting_errors
from pipeline.facts import fact_tables, joined_tables, newest_of_files
from pipeline.params import ValidateParams, load_params
from pipeline.schema import (
    MICROSECONDS_PER_HOUR,
    VALIDATE_SCHEMA,
    FleetSpec,
    codes_and_names,
    dictionary_column,
    load_fleet_spec,
    times_us,
)
from pipeline.store import day_files, read_json, write_json, write_table

EXPECTATIONS = Path(__file__).with_name("expectations.json")
ROWS_PER_VALIDATION = 2_000_000  # 0.7 GB at the peak
LISTED_MACHINES = 10
# plain row numbers: with values or columns a rule that fails on all rows takes ten times as long
RESULT_FORMAT = {
    "result_format": "COMPLETE",
    "exclude_unexpected_values": True,
    "return_unexpected_index_query": False,
}


@dataclass(frozen=True)
class Rule:
    """One expectation of the suite."""

    type: str
    kwargs: Mapping[str, Any]
    severity: str
    reason: str
    action: str  # quarantine | reject | warn
    kinds: tuple[str, ...]

    @classmethod
    def of(cls, entry: Any, where: object) -> Rule:
        """Check one entry of the file."""
        known = {"type", "kwargs", "severity", "meta"}
        if not isinstance(entry, dict) or not {"type", "kwargs"} <= set(entry) <= known:
            got = sorted(entry) if isinstance(entry, dict) else entry
            raise ContractError.of("expectation", got=got, expected="type, kwargs, severity, meta", where=where)
        meta, severity = entry.get("meta") or {}, str(entry.get("severity", "critical"))
        if severity not in ("critical", "warning", "info"):
            raise ContractError.of("severity", got=severity, expected="critical, warning or info", where=where)
        action = str(meta.get("action", "quarantine" if severity == "critical" else "warn"))
        if action not in ("quarantine", "reject", "warn"):
            raise ContractError.of("meta.action", got=action, expected="quarantine, reject or warn", where=where)
        reason = str(meta.get("reason", entry["type"]))
        kinds = tuple(meta.get("kinds", ("spectrum", "features")))
        return cls(str(entry["type"]), dict(entry["kwargs"]), severity, reason, action, kinds)


def load_rules(path: Path = EXPECTATIONS) -> list[Rule]:
    """The expectations of a JSON file.

    Raises:
        ContractError: no such file, not JSON, or an entry that is no expectation.
    """
    entries = read_json(path)
    if not isinstance(entries, list) or not entries:
        raise ContractError.of("expectations", got=type(entries).__name__, expected="a list of rules", where=path)
    return [Rule.of(entry, path) for entry in entries]


def build_suite(rules: Sequence[Rule], fleet: FleetSpec) -> Any:
    """The Great Expectations suite of the rules that hold for the fleet's kind of data.

    Raises:
        ContractError: Great Expectations knows no such expectation, or not these arguments.
    """
    import great_expectations as gx
    from great_expectations.exceptions.exceptions import ExpectationNotFoundError
    from great_expectations.expectations.metadata_types import FailureSeverity
    from great_expectations.expectations.registry import get_expectation_impl

    suite = gx.ExpectationSuite(name="facts")
    for number, rule in enumerate(rules):
        if fleet.kind not in rule.kinds:
            continue
        try:
            kind = get_expectation_impl(rule.type)
            suite.add_expectation(kind(**rule.kwargs, severity=FailureSeverity(rule.severity), meta={"rule": number}))
        except (ExpectationNotFoundError, ValueError, TypeError) as error:  # pydantic's errors are ValueErrors
            got, expected = f"{rule.type}: {str(error).splitlines()[0]}", "an expectation of Great Expectations"
            raise ContractError.of("expectation", got=got, expected=expected, where=EXPECTATIONS) from None
    return suite


@dataclass
class _Tally:
    """What one rule found, over all chunks."""

    success: bool = True
    evaluated: int = 0
    unexpected: int = 0
    kwargs: dict[str, Any] = field(default_factory=dict)


class Validator:
    """Runs the suite on frames of facts, chunk after chunk.

    Args:
        rules: of `load_rules`.
        fleet: kind and number of bins.
        params: validate section; its values are the suite's parameters.
    """

    def __init__(self, rules: Sequence[Rule], fleet: FleetSpec, params: ValidateParams) -> None:
        # before the import: Great Expectations reads it then, and would report to its makers
        os.environ["GX_ANALYTICS_ENABLED"] = "false"
        import great_expectations as gx
        from great_expectations.data_context.types.base import ProgressBarsConfig

        context = gx.get_context(mode="ephemeral")
        context.variables.progress_bars = ProgressBarsConfig(globally=False)
        asset = context.data_sources.add_or_update_pandas("memory").add_dataframe_asset("facts")
        data = asset.add_batch_definition_whole_dataframe("all")
        suite = context.suites.add_or_update(build_suite(rules, fleet))
        definition = gx.ValidationDefinition(name="facts", data=data, suite=suite)
        self._definition = context.validation_definitions.add_or_update(definition)
        self._parameters = params.model_dump()
        self._rules = list(rules)
        self._tallies: dict[int, _Tally] = {}

    def reasons(self, facts: pd.DataFrame) -> tuple[npt.NDArray[np.int64], list[str]]:
        """Per row a code (N,) into the list: why it is quarantined, reasons joined by "+"; code 0 is a good row.

        Raises:
            ContractError: a rule that rejects the data set failed.
            HearkenError: a check broke: it found nothing, and did not say that all is well.
        """
        frame = facts.reset_index(drop=True)  # the result names rows by the frame's index
        outcome = self._definition.run(
            batch_parameters={"dataframe": frame},
            expectation_parameters=self._parameters,
            result_format=RESULT_FORMAT,
        )
        failing: dict[int, npt.NDArray[np.int64]] = {}
        for result in outcome.results:
            config: Any = result.expectation_config
            number = int(config.meta["rule"])
            rows = self._rows_of(number, result, len(frame))
            if len(rows):
                failing[number] = rows
        return _joined_reasons(len(frame), {number: failing[number] for number in sorted(failing)}, self._rules)

    def _rows_of(self, number: int, result: Any, count: int) -> npt.NDArray[np.int64]:
        """The rows that a rule's result sends to quarantine."""
        rule, found = self._rules[number], result.result
        if not found:
            raise HearkenError(f"The check {rule.type} ({rule.reason}) is broken: {_exception(result.exception_info)}")
        tally = self._tallies.setdefault(number, _Tally())
        tally.success &= bool(result.success)
        tally.evaluated += int(found.get("element_count", count))
        tally.kwargs = {k: v for k, v in result.expectation_config.kwargs.items() if k != "batch_id"}
        indices = np.asarray(found.get("unexpected_index_list") or [], np.int64)
        tally.unexpected += int(found.get("unexpected_count", 0 if result.success else 1))
        if rule.action == "reject" and not result.success:
            got = found.get("observed_value", f"{len(indices)} rows that break it")
            expected = f"{rule.type} {tally.kwargs}"
            raise ContractError.of(f"data set ({rule.reason})", got=got, expected=expected, where="data/raw/spectra")
        if rule.action != "quarantine":
            return np.empty(0, np.int64)
        if len(indices) != int(found.get("unexpected_count", -1 if not result.success else 0)):
            hint = "it names no rows; give it severity warning, or meta.action reject"
            raise HearkenError(f"The check {rule.type} ({rule.reason}) cannot quarantine: {hint}.")
        return indices

    def summary(self) -> list[dict[str, Any]]:
        """Per rule what came of it, without times or random names."""
        return [
            {
                "type": self._rules[number].type,
                "kwargs": tally.kwargs,
                "severity": self._rules[number].severity,
                "action": self._rules[number].action,
                "reason": self._rules[number].reason,
                "success": tally.success,
                "rows": tally.evaluated,
                "unexpected_count": tally.unexpected,
            }
            for number, tally in sorted(self._tallies.items())
        ]


def _exception(info: Mapping[str, Any]) -> str:
    """The message inside GX's exception info, which is nested one level deeper where a metric failed."""
    parts = info.values() if "exception_message" not in info else [info]
    messages = [part.get("exception_message") for part in parts if isinstance(part, Mapping)]
    return str(next((message for message in messages if message), "an empty result"))


def _joined_reasons(
    count: int, failing: Mapping[int, npt.NDArray[np.int64]], rules: Sequence[Rule]
) -> tuple[npt.NDArray[np.int64], list[str]]:
    """Code of each row, and the reasons behind the codes: few combinations occur, so only those are joined."""
    code_N = np.zeros(count, np.int64)
    codes: dict[tuple[str, ...], int] = {(): 0}
    for number, rows in failing.items():
        before, place = np.unique(code_N[rows], return_inverse=True)
        combinations = list(codes)
        after = [tuple(dict.fromkeys((*combinations[code], rules[number].reason))) for code in before]
        code_N[rows] = np.array([codes.setdefault(combination, len(codes)) for combination in after])[place]
    return code_N, ["+".join(combination) for combination in codes]


@dataclass(frozen=True)
class ValidateResult:
    """VALIDATE_SCHEMA for every row; figures; a summary of Great Expectations' result."""

    table: pa.Table
    metrics: dict[str, Any]
    summary: dict[str, Any]


def validate(
    data_set: Path,
    params: ValidateParams,
    *,
    rules: Sequence[Rule] | None = None,
    rows_per_validation: int = ROWS_PER_VALIDATION,
) -> ValidateResult:
    """Facts and status of every row of a snapshot; its files are streamed, and spectra never held together.

    Args:
        data_set: a snapshot (`spectra/`, `fleet.yaml`).
        params: validate section.
        rules: of `load_rules`; by default the committed ones.
        rows_per_validation: rows that Great Expectations sees at once.

    Raises:
        ContractError: no rows, a damaged file, or more rows quarantined than `max_quarantined_share`.
        HearkenError: a check is broken.
    """
    fleet = load_fleet_spec(data_set / "fleet.yaml")
    files = day_files(data_set)
    validator = Validator(load_rules() if rules is None else rules, fleet, params)
    newest = newest_of_files(files, params.future_hours)
    tables = []
    for chunk in joined_tables(fact_tables(files, fleet.bins), rows_per_validation):
        frame = chunk.drop_columns(["row"]).to_pandas()
        frame["hours_ahead"] = (times_us(chunk["timestamp"]) - newest) / MICROSECONDS_PER_HOUR
        code_N, reasons = validator.reasons(frame)
        status = dictionary_column((code_N > 0).astype(np.int16), ["ok", "quarantined"])
        chunk = chunk.append_column("status", status).append_column("reason", dictionary_column(code_N, reasons))
        tables.append(chunk.cast(VALIDATE_SCHEMA))
    table = pa.concat_tables(tables).unify_dictionaries()
    metrics = {**_metrics(table), "warnings": _warnings(validator.summary())}
    if metrics["quarantined"] > params.max_quarantined_share * metrics["rows"]:
        by_reason = ", ".join(f"{name} {count}" for name, count in metrics["by_reason"].items())
        got = f"{metrics['quarantined']} of {metrics['rows']} rows ({by_reason})"
        expected = f"at most {100 * params.max_quarantined_share:g} % (validate.max_quarantined_share)"
        raise ContractError.of("quarantined rows", got=got, expected=expected, where=data_set)
    return ValidateResult(table, metrics, {"expectations": validator.summary(), "rows": table.num_rows})


def _metrics(table: pa.Table) -> dict[str, Any]:
    """Rows, quarantined rows, and which reasons and machines they have; a row may have several reasons."""
    reason_N, reasons = codes_and_names(table["reason"])
    machine_N, machines = codes_and_names(table["machine_id"])
    by_reason: dict[str, int] = {}
    for joined, count in zip(reasons, np.bincount(reason_N, minlength=len(reasons)).tolist(), strict=True):
        for reason in filter(None, joined.split("+")):
            by_reason[reason] = by_reason.get(reason, 0) + count
    bad_N = reason_N != (reasons.index("") if "" in reasons else -1)
    by_machine = np.bincount(machine_N[bad_N], minlength=len(machines))
    worst = sorted(range(len(machines)), key=lambda code: (-by_machine[code], machines[code]))[:LISTED_MACHINES]
    return {
        "rows": table.num_rows,
        "quarantined": int(bad_N.sum()),
        "by_reason": dict(sorted(by_reason.items())),
        "by_machine": {machines[code]: int(by_machine[code]) for code in worst if by_machine[code]},
    }


def _warnings(summary: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Rows that rules only warn about."""
    return {str(rule["reason"]): int(rule["unexpected_count"]) for rule in summary if rule["action"] == "warn"}


def main() -> None:
    """Read data/raw; write data/status/validate.parquet, metrics/validation.json and data/validation/result.json."""
    result = validate(Path("data/raw"), load_params().validate_)
    write_table("data/status/validate.parquet", result.table)
    write_json("metrics/validation.json", result.metrics)
    write_json("data/validation/result.json", result.summary)


if __name__ == "__main__":
    run_reporting_errors(main)

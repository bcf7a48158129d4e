"""Great Expectations: suite, context and checkpoint of `expectations.json`, and which rows its results name.

The suites are committed as plain JSON and the context is made in memory from them, because a file context writes random
ids, times and absolute paths, which no build could repeat. The file has a suite for rows and one for machine-days. What
a failed rule does is its `meta.action`: `reject` the data set, `quarantine` rows, keep them as `suspect` (visible, but
no model learns from them), or `warn`. Adding a rule to the file is all it takes.

Shape legend: N rows (or machine-days) of a frame.
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

from pipeline.errors import ContractError, HearkenError
from pipeline.store import read_json

EXPECTATIONS = Path(__file__).with_name("expectations.json")
ACTIONS = ("reject", "quarantine", "suspect", "warn")
SEVERITIES = ("critical", "warning", "info")
MOST_RULES = 62  # a bit each, in an int64
# plain row numbers: with values or columns a rule that fails on all rows takes ten times as long
RESULT_FORMAT = {
    "result_format": "COMPLETE",
    "exclude_unexpected_values": True,
    "return_unexpected_index_query": False,
}
# a number that is missing makes Great Expectations copy the frame some 30 times, 7 times slower: in a large frame the
# few rows that miss one are checked apart
APART_ROWS, APART_SHARE = 100_000, 0.1

BitsN = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Rule:
    """One expectation of a suite."""

    type: str
    kwargs: Mapping[str, Any]
    severity: str
    reason: str
    action: str  # one of ACTIONS
    kinds: tuple[str, ...]  # of data that it holds for
    needs: str | None  # a setting without which there is nothing to check

    @classmethod
    def of(cls, entry: Any, where: object) -> Rule:
        """Check one entry of the file."""
        known = {"type", "kwargs", "severity", "meta"}
        if not isinstance(entry, dict) or not {"type", "kwargs"} <= set(entry) <= known:
            got = sorted(entry) if isinstance(entry, dict) else entry
            raise ContractError.of("expectation", got=got, expected="type, kwargs, severity, meta", where=where)
        meta, severity = entry.get("meta") or {}, str(entry.get("severity", "critical"))
        if severity not in SEVERITIES:
            raise ContractError.of("severity", got=severity, expected=f"one of {SEVERITIES}", where=where)
        action = str(meta.get("action", "quarantine" if severity == "critical" else "warn"))
        if action not in ACTIONS:
            raise ContractError.of("meta.action", got=action, expected=f"one of {ACTIONS}", where=where)
        reason = str(meta.get("reason", entry["type"]))
        kinds = tuple(meta.get("kinds", ("spectrum", "features")))
        return cls(str(entry["type"]), dict(entry["kwargs"]), severity, reason, action, kinds, meta.get("needs"))


def load_rules(path: Path = EXPECTATIONS) -> dict[str, list[Rule]]:
    """The suites of a JSON file by name: `rows` and `days`.

    Raises:
        ContractError: no such file, not JSON, or an entry that is no expectation.
    """
    suites: Any = read_json(path)
    if not isinstance(suites, dict) or set(suites) != {"rows", "days"}:
        got = sorted(suites) if isinstance(suites, dict) else type(suites).__name__
        raise ContractError.of("expectations", got=got, expected="suites `rows` and `days`", where=path)
    for name, entries in suites.items():
        if not isinstance(entries, list) or not 0 < len(entries) <= MOST_RULES:
            got = f"{len(entries)} rules" if isinstance(entries, list) else type(entries).__name__
            raise ContractError.of(f"suite {name}", got=got, expected=f"1 to {MOST_RULES} rules", where=path)
    return {name: [Rule.of(entry, path) for entry in entries] for name, entries in suites.items()}


@dataclass
class Tally:
    """What one rule found, over all frames."""

    success: bool = True
    evaluated: int = 0
    unexpected: int = 0
    observed: Any = None
    config: Any = None  # GX's configuration of the expectation, its parameters filled in


@dataclass(frozen=True)
class Finding:
    """A rule and what it found, without times or random names."""

    rule: Rule
    kwargs: Mapping[str, Any]
    success: bool
    evaluated: int
    unexpected: int

    def to_json(self) -> dict[str, Any]:
        """For result.json."""
        return {
            "type": self.rule.type,
            "kwargs": dict(self.kwargs),
            "severity": self.rule.severity,
            "action": self.rule.action,
            "reason": self.rule.reason,
            "success": self.success,
            "rows": self.evaluated,
            "unexpected_count": self.unexpected,
        }


def context() -> Any:
    """A Great Expectations context in memory, silent on the terminal and towards its makers."""
    os.environ["GX_ANALYTICS_ENABLED"] = "false"  # before the import, which reads it
    import great_expectations as gx
    from great_expectations.data_context.types.base import ProgressBarsConfig

    made = gx.get_context(mode="ephemeral")
    made.variables.progress_bars = ProgressBarsConfig(globally=False)
    return made


@dataclass
class Suite:
    """One suite of the file and its checkpoint, run on frame after frame.

    Args:
        name: of the suite.
        rules: of `load_rules`.
        kind: of the data, `spectrum` or `features`.
        parameters: settings that the rules name.
        gx: of `context`.
    """

    name: str
    rules: Sequence[Rule]
    kind: str
    parameters: Mapping[str, Any]
    gx: Any
    tallies: dict[int, Tally] = field(default_factory=dict)

    def __post_init__(self) -> None:
        import great_expectations as gx

        asset = self.gx.data_sources.add_or_update_pandas(self.name).add_dataframe_asset(self.name)
        data = asset.add_batch_definition_whole_dataframe("all")
        self._checkpoints = []
        for name, row_by_row in ((self.name, False), (f"{self.name}-incomplete", True)):
            suite = self.gx.suites.add_or_update(self._expectations(gx.ExpectationSuite(name=name), row_by_row))
            definition = self.gx.validation_definitions.add_or_update(
                gx.ValidationDefinition(name=name, data=data, suite=suite)
            )
            checkpoint = gx.Checkpoint(
                name=name, validation_definitions=[definition], actions=[], result_format=RESULT_FORMAT
            )
            self._checkpoints.append(self.gx.checkpoints.add_or_update(checkpoint))

    def _expectations(self, suite: Any, row_by_row: bool) -> Any:
        """The suite with every rule that holds for this data, or only those of them that look at each row alone."""
        from great_expectations.exceptions.exceptions import ExpectationNotFoundError
        from great_expectations.expectations.expectation import (
            ColumnMapExpectation,
            ColumnPairMapExpectation,
            MulticolumnMapExpectation,
        )
        from great_expectations.expectations.metadata_types import FailureSeverity
        from great_expectations.expectations.registry import get_expectation_impl

        of_one_row = (ColumnMapExpectation, ColumnPairMapExpectation, MulticolumnMapExpectation)
        for number, rule in enumerate(self.rules):
            if self.kind not in rule.kinds or (rule.needs and self.parameters.get(rule.needs) is None):
                continue
            try:
                kind = get_expectation_impl(rule.type)
                if row_by_row and not issubclass(kind, of_one_row):
                    continue
                note = f"Reason `{rule.reason}`; where it fails: {rule.action}."
                meta = {"rule": number, "notes": {"format": "markdown", "content": [note]}}
                suite.add_expectation(kind(**rule.kwargs, severity=FailureSeverity(rule.severity), meta=meta))
            except (ExpectationNotFoundError, ValueError, TypeError) as error:  # pydantic's errors are ValueErrors
                got, expected = f"{rule.type}: {str(error).splitlines()[0]}", "an expectation of Great Expectations"
                raise ContractError.of("expectation", got=got, expected=expected, where=EXPECTATIONS) from None
        return suite

    def failures(self, frame: pd.DataFrame) -> BitsN:
        """Which rules each row (N,) breaks: bit k stands for rule k. Rules that warn are only counted.

        Columns of numbers should be int64 or float64: Great Expectations looks at others one value at a time.

        Raises:
            ContractError: a rule that rejects the data set failed.
            HearkenError: a check broke: it found nothing, and did not say that all is well.
        """
        bits_N = np.zeros(len(frame), np.int64)
        for checkpoint, rows in zip(self._checkpoints, _complete_and_not(frame), strict=True):
            if rows is not None:
                self._check(checkpoint, frame.iloc[rows], rows, bits_N)
        return bits_N

    def _check(self, checkpoint: Any, piece: pd.DataFrame, rows: slice | npt.NDArray[np.int64], bits_N: BitsN) -> None:
        """Run one checkpoint on some rows of a frame, and mark in `bits_N` which break a rule."""
        # lazy copies: it copies the frame some 70 times and changes it never, 3 times faster
        with pd.option_context("mode.copy_on_write", True):
            piece = piece.reset_index(drop=True)  # the result names rows by the frame's index
            outcome = checkpoint.run(
                batch_parameters={"dataframe": piece}, expectation_parameters=dict(self.parameters)
            )
        of_piece = bits_N[rows]
        (validation,) = outcome.run_results.values()
        for result in validation.results:
            number = int(result.expectation_config.meta["rule"])
            of_piece[self._rows_of(number, result, len(bits_N))] |= 1 << number
        bits_N[rows] = of_piece

    def _rows_of(self, number: int, result: Any, count: int) -> npt.NDArray[np.int64]:
        """The rows that a rule's result names."""
        rule, found = self.rules[number], result.result
        if not found:
            raise HearkenError(f"The check {rule.type} ({rule.reason}) is broken: {_exception(result.exception_info)}")
        tally = self.tallies.setdefault(number, Tally())
        tally.config = result.expectation_config
        tally.success &= bool(result.success)
        tally.evaluated += int(found.get("element_count", count))
        tally.observed = found.get("observed_value", tally.observed)
        indices = np.asarray(found.get("unexpected_index_list") or [], np.int64)
        unexpected = int(found.get("unexpected_count", 0 if result.success else 1))
        tally.unexpected += unexpected
        if rule.action == "reject" and not result.success:
            got = found.get("observed_value", f"{unexpected} rows that break it")
            expected = f"{rule.type} {_kwargs(tally)}"
            raise ContractError.of(f"data set ({rule.reason})", got=got, expected=expected, where="data/raw/spectra")
        if rule.action == "warn":
            return indices if self.name == "days" else indices[:0]
        if len(indices) != unexpected:
            hint = "it names no rows; give it meta.action warn or reject"
            raise HearkenError(f"The check {rule.type} ({rule.reason}) cannot {rule.action}: {hint}.")
        return indices

    def findings(self) -> list[Finding]:
        """What every rule found so far."""
        return [
            Finding(self.rules[number], _kwargs(tally), tally.success, tally.evaluated, tally.unexpected)
            for number, tally in sorted(self.tallies.items())
        ]

    def result(self) -> Any:
        """Great Expectations' result of the whole set: that of all frames together."""
        from great_expectations.core import ExpectationSuiteValidationResult, ExpectationValidationResult

        results = []
        for _, tally in sorted(self.tallies.items()):
            share = 100 * tally.unexpected / tally.evaluated if tally.evaluated else 0.0
            counts = {
                "element_count": tally.evaluated,
                "unexpected_count": tally.unexpected,
                "unexpected_percent": share,
                "missing_count": 0,
                "missing_percent": 0.0,
                "partial_unexpected_list": [],
            }
            found = counts if tally.observed is None else {"observed_value": tally.observed}
            info = {"raised_exception": False, "exception_message": None, "exception_traceback": None}
            results.append(
                ExpectationValidationResult(
                    success=tally.success, expectation_config=tally.config, result=found, exception_info=info
                )
            )
        passed = sum(bool(result.success) for result in results)
        statistics = {
            "evaluated_expectations": len(results),
            "successful_expectations": passed,
            "unsuccessful_expectations": len(results) - passed,
            "success_percent": 100 * passed / max(1, len(results)),
        }
        return ExpectationSuiteValidationResult(
            success=passed == len(results), results=results, suite_name=self.name, statistics=statistics, meta={}
        )


def _complete_and_not(frame: pd.DataFrame) -> tuple[slice | npt.NDArray[np.int64], npt.NDArray[np.int64] | None]:
    """Which rows all rules look at together, and which are checked apart, as they miss a number: none if few or many.

    >>> _complete_and_not(pd.DataFrame({"energy": [1.0, np.nan]}))
    (slice(None, None, None), None)
    """
    if len(frame) < APART_ROWS:
        return slice(None), None
    missing_N = np.zeros(len(frame), bool)
    for name in frame:
        missing_N |= frame[name].isna().to_numpy()
    if not 0 < missing_N.sum() <= APART_SHARE * len(frame):
        return slice(None), None
    return np.flatnonzero(~missing_N), np.flatnonzero(missing_N)


def _kwargs(tally: Tally) -> dict[str, Any]:
    return {key: value for key, value in tally.config.kwargs.items() if key != "batch_id"}


def _exception(info: Mapping[str, Any]) -> str:
    """The message inside GX's exception info, which is nested one level deeper where a metric failed."""
    parts = info.values() if "exception_message" not in info else [info]
    messages = [part.get("exception_message") for part in parts if isinstance(part, Mapping)]
    return str(next((message for message in messages if message), "an empty result"))


def write_site(gx: Any, suites: Sequence[Suite], folder: Path) -> None:
    """Great Expectations' own Data Docs of the suites and their results, as it makes them, into a folder."""
    import datetime as dt

    from great_expectations.core.run_identifier import RunIdentifier
    from great_expectations.data_context.types.resource_identifiers import (
        ExpectationSuiteIdentifier,
        ValidationResultIdentifier,
    )

    backend = {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(folder)}
    site = {"class_name": "SiteBuilder", "show_how_to_buttons": False, "store_backend": backend}
    gx.variables.data_docs_sites = {"docs": site | {"site_index_builder": {"class_name": "DefaultSiteIndexBuilder"}}}
    run = RunIdentifier(run_name="validate", run_time=dt.datetime(1970, 1, 1, tzinfo=dt.UTC))
    for key in gx.validation_results_store.list_keys():  # one result of the whole set, not one per frame
        gx.validation_results_store.remove_key(key)
    for suite in suites:
        result = suite.result()
        result.meta |= {"run_id": run, "validation_id": None, "checkpoint_id": None}
        key = ValidationResultIdentifier(ExpectationSuiteIdentifier(suite.name), run, "all")
        gx.validation_results_store.set(key, result)
    gx.build_data_docs(site_names=["docs"])

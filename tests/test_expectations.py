"""The suites of expectations.json: which rules hold where, and which bits stand for what."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from pipeline.errors import ContractError
from pipeline.expectations import Rule, Suite, context, load_rules
from pipeline.params import ValidateParams

LIMITS = ValidateParams().model_dump()


def rule(reason: str, action: str = "quarantine", column: str = "energy", **kwargs) -> Rule:
    meta = {"reason": reason, "action": action}
    kind = "expect_column_values_to_be_between"
    return Rule.of({"type": kind, "kwargs": {"column": column} | kwargs, "meta": meta}, "test")


def suite(*rules: Rule, name: str = "rows", kind: str = "spectrum") -> Suite:
    return Suite(name, rules, kind, LIMITS, context())


FRAME = pd.DataFrame({"energy": [1.0, 5.0, np.nan, -2.0], "peak": [1, 2, 3, 4]}, index=[7, 8, 9, 10])


def test_bits_stand_for_rules_and_warnings_only_count():
    found = suite(
        rule("high", max_value=4), rule("low", "suspect", min_value=0), rule("odd", "warn", column="peak", max_value=1)
    )
    assert found.failures(FRAME).tolist() == [0, 0b01, 0, 0b10]
    counts = [(finding.rule.reason, finding.evaluated, finding.unexpected) for finding in found.findings()]
    assert counts == [("high", 4, 1), ("low", 4, 1), ("odd", 4, 3)]
    found.failures(FRAME[:2])
    assert [finding.unexpected for finding in found.findings()] == [2, 1, 4]


def test_the_result_is_that_of_all_frames():
    found = suite(rule("high", max_value=4), rule("wide", column="peak", max_value=9))
    for piece in (FRAME[:2], FRAME[2:]):
        found.failures(piece)
    result = found.result()
    assert not result.success
    assert [outcome.success for outcome in result.results] == [False, True]
    assert result.results[0].result["unexpected_percent"] == 25
    assert result.statistics["success_percent"] == 50


def test_days_are_told_their_warnings():
    assert suite(rule("odd", "warn", column="peak", max_value=3), name="days").failures(FRAME).tolist() == [0, 0, 0, 1]


def test_rows_that_miss_a_number_are_checked_apart_in_a_large_frame_and_no_rule_forgets_them():
    rows = 100_000
    frame = pd.DataFrame({"energy": np.ones(rows), "peak": np.ones(rows)})
    frame.loc[[3, 70_000], "energy"] = np.nan
    frame.loc[[9, 70_000], "peak"] = 5.0
    frame.loc[9, "energy"] = 7.0
    pair = {"column_A": "energy", "column_B": "peak", "or_equal": True, "ignore_row_if": "neither"}
    found = suite(
        rule("high", max_value=4),
        rule("peak", column="peak", max_value=4),
        Rule.of({"type": "expect_table_row_count_to_be_between", "kwargs": {"min_value": 9}, "severity": "info"}, ""),
        Rule.of({"type": "expect_column_pair_values_a_to_be_greater_than_b", "kwargs": pair}, ""),
        Rule.of({"type": "expect_column_values_to_not_be_null", "kwargs": {"column": "energy"}}, ""),
    )
    bits = found.failures(frame)
    marked = {row: int(bits[row]) for row in np.flatnonzero(bits).tolist()}
    assert marked == {3: 0b11000, 9: 0b00011, 70_000: 0b11010}
    assert [(each.evaluated, each.unexpected) for each in found.findings()] == [
        (rows, 1),
        (rows, 2),
        (rows, 0),
        (rows, 2),
        (rows, 2),
    ]


def test_a_rule_that_rejects_stops():
    with pytest.raises(ContractError, match=r"data set \(high\): got 1 rows that break it"):
        suite(rule("high", "reject", max_value=4)).failures(FRAME)


def test_kinds_and_needs_choose_the_rules():
    rules = load_rules()["rows"]
    columns = {value for entry in rules if (value := entry.kwargs.get("column"))}
    frame = pd.DataFrame({name: [1.0] for name in sorted(columns)}).assign(machine_id="a", timestamp=0)

    def checked(kind: str, **settings) -> set[str]:
        found = Suite("rows", rules, kind, LIMITS | settings, context())
        found.failures(frame)
        return {finding.rule.reason for finding in found.findings()}

    spectrum, features = checked("spectrum"), checked("features")
    assert spectrum - features == {"negative", "saturated", "single_line"}
    assert checked("features", saturation=9.0) - features == {"saturated"}


def test_every_action_of_the_committed_file_is_as_documented():
    actions = {(name, found.reason): found.action for name, rules in load_rules().items() for found in rules}
    by_action = {action: {r for (_, r), a in actions.items() if a == action} for action in set(actions.values())}
    assert by_action == {
        "reject": {"no_rows", "columns"},
        "quarantine": {"nonfinite", "negative", "energy", "duplicate", "unordered", "future", "unit_change"},
        "suspect": {"flat", "silent", "saturated", "stuck"},
        "warn": {"single_line", "missing", "off", "gain_step", "band_edges"},
    }

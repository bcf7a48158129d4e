"""What the thresholds page says of the alert policy: the rule, its choice, and the gap between tune and test."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from report_data import full_data

from pipeline.report_page.blocks import Items, Table, Text
from pipeline.report_page.data import ReportData
from pipeline.report_page.policy import policy_blocks

HOUR = 3_600_000_000


def candidate(percentile: float, k: int, n: int, caught: list[str], pages: int, upper: float, **more: Any) -> dict:
    return {
        "page_percentile": percentile, "k": k, "n": n, "cool_down_hours": 0.0, "caught": caught,
        "median_lead_time_hours": 20.0 if caught else None, "false_page_episodes": pages, "upper": upper,
        "within_budget": upper <= 8, "chosen": False,
    } | more  # fmt: skip


def told(policy: dict[str, Any], table: list[dict], failures: tuple[str, ...] = ("A", "B", "C", "D")) -> ReportData:
    choice = {
        "detector": "ensemble", "failures": list(failures), "machine_days": 394.0,
        "allowed_false_page_episodes": 7.87, "table": table, "notes": ["<b>luck</b>"],
    }  # fmt: skip
    data = full_data()
    service = {"events": 8, "events_caught": 2, "false_episodes": 3, "machine_days": 891.0}
    calibration = {**(data.calibration or {}), "policy": policy, "choice": choice}
    return replace(data, calibration=calibration, evaluation={**data.evaluation, "in_service": service})


def test_the_rule_the_choice_and_the_gap() -> None:
    table = [
        candidate(99.8, 1, 1, ["A", "B", "C", "D"], 20, 30.0),
        candidate(99.9, 3, 5, ["A", "B", "C"], 2, 5.3, chosen=True, cool_down_hours=24.0),
        candidate(99.99, 1, 1, [], 0, 2.3),
        *[candidate(99.95, 3, 5, ["A"], 1, 3.9) for _ in range(6)],
    ]
    policy = {"k": 3, "n": 5, "window_us": 2 * HOUR, "cool_down_us": 24 * HOUR}
    rule, gap, candidates, notes = policy_blocks(told(policy, table))
    assert isinstance(rule, Text)
    assert "3 of a machine's last 5 rows that are no older than 120 minutes exceed the page threshold" in rule.text
    assert "none opens for 24 hours" in rule.text
    assert isinstance(gap, Text)
    assert "caught 3 of 4 (75 %), with 2 false pages in 394 machine-days" in gap.text
    assert "2 of 8 (25 %), with 3 in 891 machine-days: tune minus test +50 points." in gap.text
    assert isinstance(candidates, Table)
    assert len(candidates.rows) == 6
    first, last = candidates.rows[0], candidates.rows[-1]
    assert (first[0].text, first[0].beneath, first[2].text, first[3].text) == ("99.9", "chosen", "24 h", "3 of 4")
    assert last[0].text == "99.95", "within the budget and catching more than the quiet one"
    assert "the first 6 of 9 candidates; the budget allows 7.87" in candidates.caption
    assert isinstance(notes, Items)
    assert notes.items == ["<b>luck</b>"]


def test_one_row_without_failures_says_only_the_rule() -> None:
    alone = [candidate(99.95, 1, 1, [], 0, 2.3, chosen=True)]
    blocks = policy_blocks(told({"k": 1, "n": 1, "window_us": HOUR}, alone, failures=()))
    assert [type(block) for block in blocks] == [Text, Items]
    assert isinstance(blocks[0], Text)
    assert blocks[0].text.startswith("A page opens at a row above the page threshold")
    assert policy_blocks(replace(full_data(), calibration={})) == []

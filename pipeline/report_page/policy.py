"""How the alert policy was chosen: the candidates on tune failures, and what the chosen one then did on the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.report_page.blocks import (
    EM_DASH,
    Block,
    Cell,
    Column,
    Items,
    Table,
    Text,
    as_map,
    as_number,
    count,
    number,
    percent,
    plural,
)
from pipeline.report_page.colours import detector_label
from pipeline.report_page.data import ReportData

LISTED = 6


def policy_blocks(data: ReportData) -> list[Block]:
    """What the policy is, what it was chosen from, and the gap between tune and test."""
    calibration = as_map(data.calibration)
    sentence = _policy_sentence(as_map(calibration.get("policy")))
    blocks: list[Block] = [Text(sentence)] if sentence else []
    choice = as_map(calibration.get("choice"))
    table = [as_map(row) for row in choice.get("table") or []]
    chosen = next((row for row in table if row.get("chosen")), None)
    if chosen is None:
        return blocks
    gap = _gap(data, choice, chosen)
    blocks += [Text(gap)] if gap else []
    if len(table) > 1:
        blocks.append(_candidates(choice, table))
    said = [str(text) for text in choice.get("notes") or []]
    return blocks + ([Items(said, "Said by the choice")] if said else [])


def _policy_sentence(policy: Mapping[str, Any]) -> str:
    k, n = as_number(policy.get("k")), as_number(policy.get("n"))
    if k is None or n is None:
        return ""
    minutes = as_number(policy.get("window_minutes")) or (as_number(policy.get("window_us")) or 0) / 60e6
    window = f" that are no older than {number(minutes)} minutes" if minutes else ""
    cool_down = (as_number(policy.get("cool_down_us")) or 0) / 3.6e9
    after = f" After an alert closed, none opens for {cool_down:g} hours." if cool_down else ""
    if n == 1:
        return f"A page opens at a row above the page threshold, and stands while rows exceed the low threshold.{after}"
    return (
        f"A page opens when {count(k)} of a machine's last {plural(int(n), 'row')}{window} exceed the page threshold, "
        f"and stands as long as the low threshold is exceeded so often.{after}"
    )


def _gap(data: ReportData, choice: Mapping[str, Any], chosen: Mapping[str, Any]) -> str:
    """Tune beside test: what was chosen on some failures, on others."""
    tuned, caught = list(choice.get("failures") or []), list(chosen.get("caught") or [])
    service = as_map(data.evaluation.get("in_service"))
    events, of_test = as_number(service.get("events")), as_number(service.get("events_caught"))
    days, test_days = as_number(choice.get("machine_days")), as_number(service.get("machine_days"))
    if not tuned or not events or of_test is None or not days or not test_days:
        return ""
    pages, test_pages = as_number(chosen.get("false_page_episodes")), as_number(service.get("false_episodes"))
    share, test_share = len(caught) / len(tuned), of_test / events
    return (
        f"On the failures that chose it the policy caught {count(len(caught))} of {count(len(tuned))} "
        f"({percent(share)}), with {count(pages)} false pages in {number(days)} machine-days of calibration; on the "
        f"test failures, which chose nothing, {count(of_test)} of {count(events)} ({percent(test_share)}), with "
        f"{count(test_pages)} in {number(test_days)} machine-days: tune minus test "
        f"{100 * (share - test_share):+.0f} points."
    )


def _candidates(choice: Mapping[str, Any], table: Sequence[Mapping[str, Any]]) -> Table:
    """The chosen candidate, and the best others within the budget, then beyond it."""
    tuned, allowed = len(choice.get("failures") or []), as_number(choice.get("allowed_false_page_episodes"))

    def rank(row: Mapping[str, Any]) -> tuple[bool, bool, int, float]:
        caught = len(row.get("caught") or [])
        return not row.get("chosen"), not row.get("within_budget"), -caught, as_number(row.get("upper")) or 0.0

    rows = []
    for row in sorted(table, key=rank)[:LISTED]:
        lead, cool_down = as_number(row.get("median_lead_time_hours")), as_number(row.get("cool_down_hours")) or 0
        rows.append(
            [
                Cell(f"{as_number(row.get('page_percentile')):g}", "chosen" if row.get("chosen") else ""),
                Cell(f"{count(row.get('k'))} of {count(row.get('n'))}"),
                Cell(f"{cool_down:g} h" if cool_down else EM_DASH),
                Cell(f"{count(len(row.get('caught') or []))} of {count(tuned)}" if tuned else EM_DASH),
                Cell(EM_DASH if lead is None else f"{number(lead)} h"),
                Cell(count(row.get("false_page_episodes"))),
                Cell(number(as_number(row.get("upper"))), "" if row.get("within_budget") else "beyond the budget"),
            ]
        )
    columns = [
        Column("Page percentile", numeric=False),
        Column("Rows", hint="k of n"),
        Column("Cool-down"),
        Column("Caught", hint="tune"),
    ]
    columns += [Column("Median lead"), Column("False pages", hint="calibration"), Column("Upper 90 % bound")]
    name = detector_label(str(choice.get("detector") or ""))
    caption = (
        f"What the policy was chosen from ({name}): the first {count(len(rows))} of {count(len(table))} candidates; "
        f"the budget allows {number(allowed)} false pages on these calibration rows"
    )
    return Table(caption, columns, rows)

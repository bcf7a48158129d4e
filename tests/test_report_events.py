"""How the report shows the judgement by events: the curve, modes, pairs, and rates that change over time."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from report_data import DETECTORS, HOSTILE, curves, evaluation, full_data, rates_over_time

from pipeline.report import ReportData
from pipeline.report_page.against import mode_table, pair_blocks
from pipeline.report_page.blocks import Chart, Group, Table, Text
from pipeline.report_page.comparison import comparison_section
from pipeline.report_page.judgement import cautions, comparison_table
from pipeline.report_page.next_steps import next_steps
from pipeline.report_page.over_time import over_time_group, week_chart
from pipeline.report_page.price import price_chart
from pipeline.report_page.summaries import series_summary
from pipeline.report_page.thresholds import thresholds_section


def data(**changed: Any) -> ReportData:
    """The full report with some of the evaluation's figures changed."""
    return replace(full_data(), evaluation=evaluation() | changed)


def texts(table: Table) -> list[list[str]]:
    return [[cell.text for cell in row] for row in table.rows]


def curve_of(chart: Chart, label: str) -> dict[str, Any]:
    return next(dict(trace) for trace in chart.traces if trace["name"] == label)


def test_the_curve_has_a_staircase_and_a_calibrated_dot_for_each_detector() -> None:
    chart = price_chart(data())
    assert chart is not None
    stairs = [trace for trace in chart.traces if trace["mode"] == "lines"]
    dots = [trace for trace in chart.traces if trace["mode"] == "markers"]
    assert len(stairs) == len(dots) == len(DETECTORS)
    assert [trace["showlegend"] for trace in dots] == [*[False] * (len(DETECTORS) - 1), True]
    pca = curve_of(chart, "PCA")
    swept = [row for row in curves() if row["detector"] == "pca" and row["kind"] == "sweep"]
    assert pca["customdata"][:-1] == [row["events_caught"] for row in swept]
    assert pca["x"][:-1] == pytest.approx([row["false_episodes_per_day"] for row in swept], rel=1e-3)
    assert len({trace["x"][-1] for trace in stairs}) == 1  # all go on to the chart's end
    assert len({trace["y"][-1] for trace in stairs}) == len(stairs)  # and are told apart where they coincide
    assert all(abs(trace["y"][-1] - trace["customdata"][-1]) < 0.5 for trace in stairs)
    assert chart.layout["shapes"][0]["x0"] == pytest.approx(0.02 * 24)  # the budget of 24 machines
    assert "with at most the budget of 0.48 false episodes a day: Autoencoder 5" in chart.caption
    assert "Descriptive" in chart.caption


def test_the_curve_in_numbers_tells_counts_and_not_where_lines_are_drawn() -> None:
    chart = price_chart(data())
    assert chart is not None
    table = series_summary(chart)
    assert table is not None
    assert [row[0].text for row in table.rows] == [
        "Autoencoder", "Variational autoencoder", "PCA", "Energy z-score", "Squared distance"
    ]  # fmt: skip
    assert table.rows[0][-2].text == "1.00"
    assert table.rows[0][-1].text == "5.00"


def test_without_a_calendar_the_curve_counts_in_all() -> None:
    undated = [row | {"false_episodes_per_day": None} for row in curves()]
    chart = price_chart(replace(data(), curves=undated))
    assert chart is not None
    assert "in all" in chart.layout["xaxis"]["title"]["text"]
    assert chart.layout["shapes"][0]["x0"] == pytest.approx(0.02 * 402.8)
    assert curve_of(chart, "PCA")["x"][1] == 3


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [row | {"events_caught": None, "events": 0} for row in curves()],
        [row for row in curves() if row["kind"] == "operating"],
        [{}],
    ],
)
def test_there_is_no_curve_where_nothing_could_be_caught(rows: list[dict[str, Any]]) -> None:
    assert price_chart(replace(data(), curves=rows)) is None


def test_a_curve_without_any_false_episode_has_a_width() -> None:
    quiet = [row for row in curves() if row["false_episodes"] == 0 and row["kind"] == "sweep"]
    chart = price_chart(replace(data(), curves=quiet))
    assert chart is not None
    assert chart.layout["xaxis"]["range"][1] > 0
    assert curve_of(chart, "PCA")["x"] == [0.0, 1.0]


def test_modes_stand_most_frequent_first_with_the_interval_of_the_share() -> None:
    table = mode_table(data())
    assert table is not None
    assert [row[0] for row in texts(table)] == ["imbalance", "outer race", "energy rise"]
    first = table.rows[0]
    assert (first[1].text, first[3].text, first[3].beneath) == ("2", "2 of 2", "43 to 100 %")
    assert [cell.best for cell in first[2:]] == [False, True, True, False, True]
    unnamed = {"unknown": {"events": 1, "detectors": {"pca": {"events_caught": None, "events_caught_ci": None}}}}
    table = mode_table(data(failure_modes=unnamed))
    assert table is not None
    assert texts(table)[0][2:] == ["—"] * len(DETECTORS)
    assert mode_table(data(failure_modes=None)) is None


def test_pairs_show_counts_difference_test_and_why_an_interval_is_missing() -> None:
    first, second, text = pair_blocks(data())
    assert isinstance(first, Table)
    assert isinstance(second, Table)
    assert isinstance(text, Text)
    assert "against Autoencoder, the release's own" in first.caption
    assert "against Squared distance, the best baseline" in second.caption
    assert texts(first)[0] == ["Variational autoencoder", "3", "0", "1", "1", "−1", "1.0", "−0.0020"]
    assert first.rows[0][-1].beneath == "−0.0060 to +0.0030"
    assert first.rows[0][5].note == 1
    assert "too few to resample" in first.footnotes[0]
    assert "Against Autoencoder, no difference in failures caught is more than chance explains." in text.text


def test_a_sure_difference_is_named_and_a_release_that_is_the_best_baseline_has_one_table() -> None:
    pairs = json.loads(json.dumps(evaluation()["pairs"]))
    pairs["against_release"]["detectors"]["pca"]["exact_p"] = 0.0004
    pairs["against_best_baseline"]["against"] = "autoencoder"
    table, text = pair_blocks(data(pairs=pairs))
    assert isinstance(table, Table)
    assert isinstance(text, Text)
    assert texts(table)[1][6] == "< 0.001"
    assert "chance does not explain what PCA caught more or less" in text.text


@pytest.mark.parametrize("pairs", [None, {"only": {}}, {"against_release": {"against": None, "detectors": {}}}])
def test_an_evaluation_without_differences_has_the_plain_counts(pairs: Any) -> None:
    assert pair_blocks(data(pairs=pairs)) == []
    captions = [block.caption for block in comparison_section(data(pairs=pairs)).blocks if isinstance(block, Table)]
    assert "In pairs: Autoencoder against each other detector" in captions


def test_null_differences_have_a_dash_and_their_reason() -> None:
    pairs = json.loads(json.dumps(evaluation()["pairs"]))
    for figures in pairs["against_release"]["detectors"].values():
        figures.update(dict.fromkeys(figures))
    reasons = {"events_caught_difference": "no failure", "false_episodes_per_machine_day_difference": "synthetic"}
    table, *_, text = pair_blocks(data(pairs=pairs, null_reasons=reasons))
    assert isinstance(table, Table)
    assert isinstance(text, Text)
    assert texts(table)[0][1:] == ["—"] * 7
    assert list(table.footnotes) == ["no failure", "synthetic"]
    assert "only false episodes can be compared" in text.text


def test_quartiles_and_days_in_alert_stand_in_the_comparison() -> None:
    table = comparison_table(data())
    assert table.columns[-1].label == "Days in alert"
    assert table.rows[0][-1].text == "3.1 %"
    assert table.rows[0][-2].beneath == "half: 43 to 74 h"
    old = evaluation()
    for figures in old["detectors"].values():
        del figures["machine_days_with_alert_share"], figures["lead_time_quartiles_hours"]
    table = comparison_table(data(detectors=old["detectors"]))
    assert table.columns[-1].label == "Median lead time"
    assert table.rows[0][-1].beneath == ""


def test_later_rows_that_fire_more_often_are_warned_of() -> None:
    (group,) = over_time_group(data())
    assert isinstance(group, Group)
    text, _, parts, weeks = group.blocks
    assert isinstance(text, Text)
    assert text.tone == "warning"
    assert "0.091 % (interval 0.055 to 0.15 %) in the second" in text.text
    assert isinstance(parts, Table)
    assert [row[-1] for row in texts(parts)] == ["inside", "more", "—", "—"]
    assert "Baseline epochs of the rows are not known here." in parts.footnotes
    assert isinstance(weeks, Table)
    assert [row[-1] for row in texts(weeks)] == ["inside"] * 4 + ["more", "—"]
    assert weeks.rows[0][0].beneath == "2025-01-16 to 2025-01-22"
    assert "12 machine-days are too few" in weeks.footnotes[0]
    assert any("second half of the test span" in caution for caution in cautions(data()))
    assert group in thresholds_section(data()).blocks
    changed = "Find out what changed in the second half of the test span"
    assert changed in [step.title for step in next_steps(data())]
    always = rates_over_time()
    always["first_half"] = always["second_half"]
    assert changed not in [step.title for step in next_steps(data(rates_over_time=always))]


@pytest.mark.parametrize(
    ("low", "high", "told"),
    [
        (0.0001, 0.0004, "quieter"),
        (0.0003, 0.0009, "still resemble"),
        (0.0, 0.04, "almost any"),
        (None, None, "the data cannot tell"),
    ],
)
def test_later_rows_that_keep_or_undercut_the_rate_are_told_calmly(low: Any, high: Any, told: str) -> None:
    figures = rates_over_time()
    figures["second_half"] |= {"ci_low": low, "ci_high": high, "holds_asked": None if low is None else high > 0.0005}
    (group,) = over_time_group(data(rates_over_time=figures))
    assert isinstance(group, Group)
    text = group.blocks[0]
    assert isinstance(text, Text)
    assert told in text.text
    assert text.tone == "plain"


def test_the_chart_of_weeks_has_an_interval_each_and_what_was_asked_for() -> None:
    chart = week_chart(rates_over_time())
    assert chart is not None
    asked, kept, more, untold = chart.traces
    assert asked["y"] == pytest.approx([0.05, 0.05])
    assert (kept["x"], more["x"], untold["x"]) == ([1, 2, 3, 4], [5], [6])
    assert more["error_y"]["array"][0] == pytest.approx(0.112 * 0.7, rel=1e-3)
    assert "error_y" not in untold
    assert "6 weeks, 5 with an interval; 1 excludes the 0.050 %" in chart.caption


def test_spans_of_several_weeks_and_absent_figures() -> None:
    figures = rates_over_time()
    figures["weeks"] = [week | {"week": 3 * place + 1, "weeks": 3} for place, week in enumerate(figures["weeks"])]
    (group,) = over_time_group(data(rates_over_time=figures))
    assert isinstance(group, Group)
    weeks = group.blocks[-1]
    assert isinstance(weeks, Table)
    assert weeks.rows[1][0].text == "Weeks 4 to 6"
    chart = week_chart(figures)
    assert chart is not None
    assert "first of 3 weeks" in chart.layout["xaxis"]["title"]["text"]
    assert week_chart(figures | {"weeks": []}) is None
    assert over_time_group(data(rates_over_time=None)) == []
    bare = dict.fromkeys(figures) | {"asked": 0.0005}
    (group,) = over_time_group(data(rates_over_time=bare))
    assert isinstance(group, Group)
    assert len(group.blocks) == 2


def test_hostile_modes_and_detectors_stay_text() -> None:
    judged = evaluation()
    judged["detectors"][HOSTILE] = judged["detectors"].pop("pca")
    judged["failure_modes"] = {HOSTILE: {"events": 1, "detectors": {HOSTILE: {"events_caught": 1}}}}
    rows = [row | {"detector": HOSTILE if row["detector"] == "pca" else row["detector"]} for row in curves()]
    hostile = replace(full_data(), evaluation=judged, curves=rows)
    chart = price_chart(hostile)
    assert chart is not None
    told = json.dumps([chart.traces, chart.layout]).replace("<extra></extra>", "")
    assert "<" not in told
    assert mode_table(hostile) is not None

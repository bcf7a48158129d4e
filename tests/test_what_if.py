"""What other settings would have done: as the evaluation judged it, as a score log has it, and what is refused."""

from __future__ import annotations

import datetime as dt
import json
import os
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from small_fleet import SMALL_PARAMS

import pipeline.calibrate
import pipeline.evaluate
import pipeline.release
import pipeline.what_if_sources
from flows.database import open_database
from flows.registry import promote, register_release
from flows.settings import Settings
from pipeline.alerts import MINUTE, AlertPolicy, Timeline
from pipeline.errors import ContractError, ReleaseError, UserError
from pipeline.judging.judged import FAULTY, HEALTHY, Event, JudgedRows
from pipeline.judging.outcomes import outcome_of
from pipeline.params import Params, load_params
from pipeline.pareto import fit_tail, tier_threshold
from pipeline.policy_state import page_episodes
from pipeline.release import Release, load_release
from pipeline.replay import Recording
from pipeline.report_page.what_if import what_if_chart
from pipeline.schema import codes_and_names, times_us
from pipeline.score import score_data_set
from pipeline.score_log import compact_day
from pipeline.store import read_json, read_table, write_json, write_table
from pipeline.tails import TailTable
from pipeline.what_if import MOST_SETTINGS, Setting, Wanted, grid, limits_of, settings_of, what_if
from pipeline.what_if_sources import level_limit, replay_evaluation, replay_score_log

HOUR = 3_600_000_000
SECONDS = 0.0011  # hours: events.json tells times to the second
HOSTILE = "<b>press</b> %{x} </script>\u202e"
LOW = 3.9
PRESENT = Setting(99.0, 4.6, LOW, AlertPolicy(3, 5, 300 * MINUTE, 150 * MINUTE), present=True)


def plant(machines: int = 24, rows: int = 1200) -> tuple[JudgedRows, list[Event], list[str]]:
    """A row an hour of machines whose scores are exponential; six of them fail, with scores that rise for two days."""
    rng = np.random.default_rng(4)
    machine = np.repeat(np.arange(machines), rows).astype(np.int32)
    time_us = np.tile(np.arange(rows) * HOUR, machines)
    score, label, events = rng.exponential(size=machines * rows), np.full(machines * rows, HEALTHY, np.int8), []
    for index in range(6):
        end = (300 + 120 * index) * HOUR
        before = (machine == index) & (time_us > end - 48 * HOUR) & (time_us <= end)
        score[before] += np.linspace(0, 2.0 * index, int(before.sum()))
        label[before] = FAULTY
        events.append(Event(f"F{index}", index, end - 48 * HOUR, end, end - 48 * HOUR, "outer_race"))
    names = [HOSTILE, *(f"press-{index:02d}" for index in range(1, machines))]
    return JudgedRows(machine, time_us, label, {"pca": score}), events, names


def replayed(wanted: Wanted, budget: float = 1.0, calendar: bool = True) -> dict[str, Any]:
    rows, events, names = plant()
    healthy = np.random.default_rng(5).exponential(size=5000)
    limits, notes = limits_of(healthy, (*wanted.percentiles, 99.0), None, (99.0, 4.6))
    recording = Recording.of_rows(rows, "pca", min(limits.values()), events, names, calendar)
    settings, more = settings_of(PRESENT, wanted, limits, recording.interval_us)
    return what_if(recording, settings, detector="pca", budget=budget, shifts=30, seed=0, notes=[*notes, *more])


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"percentiles": (50.0,)}, "--percentile: got 50, expected above 50 and below 100"),
        ({"percentiles": (99.0, 100.0)}, "--percentile: got 100, expected above 50 and below 100"),
        ({"percentiles": (101.0,)}, "--percentile: got 101, expected"),
        ({"percentiles": (float("nan"),)}, "--percentile: got nan, expected"),
        ({"k": (0,)}, "--k: got 0, expected at least 1"),
        ({"n": (-1,)}, "--n: got -1, expected at least 1"),
        ({"k": (6,)}, "--k: got 6, expected at most n, which is 5"),
        ({"k": (3, 11), "n": (5, 10)}, "--k: got 11, expected at most n, which is 10"),
        ({"k": (1,), "n": (10**23,)}, "--n: got 100000000000000000000000, expected at most 100,000"),
        ({"window_minutes": 0.0}, "--window: got 0, expected minutes above 0"),
        ({"window_minutes": 1e300}, r"--window: got 1e\+300, expected minutes above 0, at most 5,256,000"),
        ({"cool_down_hours": -1.0}, "--cool-down: got -1, expected hours from 0 on"),
        ({"cool_down_hours": 1e300}, r"--cool-down: got 1e\+300, expected hours from 0 on, at most 87,600"),
        ({"percentiles": tuple(60.0 + index / 2 for index in range(70))}, "settings: got 70 percentiles and 1 pairs"),
    ],
)
def test_settings_out_of_range_are_refused(wanted: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        replayed(Wanted(**wanted))


def test_every_setting_says_what_all_rows_would_have_said() -> None:
    rows, events, names = plant()
    found = replayed(Wanted((95.0, 99.0, 99.9), (1, 3), (1, 5, 9)))
    assert [row["present"] for row in found["settings"]] == [True] + [False] * 14
    limits = {95.0: None, 99.0: 4.6, 99.9: None}
    healthy = np.random.default_rng(5).exponential(size=5000)
    for row in found["settings"]:
        limit = limits[row["percentile"]] or float(np.percentile(healthy, row["percentile"], method="higher"))
        times = (int(row["window_minutes"] * MINUTE), int(row["gap_minutes"] * MINUTE))
        line = Timeline.of(rows.machine, rows.time_us, AlertPolicy(row["k"], row["n"], *times))
        pages = page_episodes(line, rows.scores["pca"] > LOW, rows.scores["pca"] > limit)
        outcome = outcome_of(pages, events)
        assert row["alerts"] == len(pages)
        assert row["false_episodes"] == outcome.false_episodes
        assert row["lead_time_hours"] == {name: round(lead, 3) for name, (_, lead) in sorted(outcome.caught.items())}
        assert row["alerts_per_day"] == pytest.approx(row["alerts"] / 50)
    assert [failure["failure_id"] for failure in found["failures"]] == [event.failure_id for event in events]
    assert found["failures"][0]["machine_id"] == names[0]


def test_more_of_more_and_higher_percentiles_alarm_less() -> None:
    rows = replayed(Wanted((95.0, 99.0, 99.9), (1, 2, 3), (5,)))["settings"]
    by = {(row["percentile"], row["k"]): row for row in rows}
    for figure in ("alerts", "machine_days_with_alert", "events_caught", "events_by_chance"):
        assert by[95.0, 1][figure] >= by[99.0, 1][figure] >= by[99.9, 1][figure]
        assert by[95.0, 1][figure] >= by[95.0, 2][figure] >= by[95.0, 3][figure]
    assert by[95.0, 1]["alerts"] > by[99.9, 3]["alerts"]
    assert 0 < by[99.0, 1]["machine_days_with_alert"] < 1


def test_the_budget_is_kept_by_the_whole_interval_or_not_surely() -> None:
    wanted = Wanted((95.0, 99.9), (1,), (1,))
    row = replayed(wanted)["settings"][2]
    low, high = row["false_episodes_per_day_ci"]
    assert low < row["false_episodes_per_day"] < high
    told = [replayed(wanted, budget)["settings"][2]["budget_kept"] for budget in (low / 2, (low + high) / 2, high)]
    assert told == ["no", "unsure", "yes"]


def test_a_cool_down_and_a_window_change_what_is_replayed() -> None:
    quiet = replayed(Wanted((95.0,), (1,), (1,), cool_down_hours=48.0))["settings"]
    loud = replayed(Wanted((95.0,), (1,), (1,)))["settings"]
    assert 0 < quiet[1]["alerts"] < loud[1]["alerts"]
    assert (quiet[0]["cool_down_hours"], quiet[1]["cool_down_hours"]) == (0, 48)
    found = replayed(Wanted((95.0,), (2,), (12,), window_minutes=60))
    assert found["settings"][1]["window_minutes"] == 727.2
    assert any("window widened from 60 to 727.2 minutes" in note for note in found["notes"])


def test_synthetic_dates_have_no_rate_per_day() -> None:
    found = replayed(Wanted(), calendar=False)
    row = found["settings"][0]
    for figure in ("alerts_per_day", "false_episodes_per_day", "budget_kept"):
        assert row[figure] is None
        assert "synthetic" in found["null_reasons"][figure]
    assert row["events_caught"] > 0
    assert row["median_lead_time_hours"] > 0


def test_what_is_extrapolated_is_said() -> None:
    scores = np.random.default_rng(0).exponential(size=5000)
    tail = fit_tail(scores, np.arange(5000) // 10).tail
    limits, notes = limits_of(scores, (99.0, 99.99), tail, (99.5, 1.25))
    assert limits[99.5] == 1.25
    assert limits[99.99] == pytest.approx(tail.score_at(1e-4))
    assert notes == ["Percentile 99.99 needs 100,000 calibration rows, there are 5,000: its threshold is extrapolated."]
    _, notes = limits_of(scores, (99.99,), None, (99.5, 1.25))
    assert notes[0].endswith("its threshold is among the largest scores.")


# --- the chart of the report ------------------------------------------------------------------------------------------


def report_grid(**changes: Any) -> dict[str, Any]:
    rows, events, names = plant()
    scores = np.random.default_rng(5).exponential(size=5000)
    figures = {
        "low": {"threshold": LOW},
        "page": {"percentile": 99.95, "threshold": 7.6},
        "tail": fit_tail(scores, np.arange(5000) // 10).to_json(),
    }
    given = {"detector": "pca", "budget_per_machine_day": 0.02, "shifts": 20, "seed": 0} | changes
    return grid(rows, events, names, scores, figures, PRESENT.policy, **given)


def test_the_grid_holds_the_present_setting_and_at_most_sixty() -> None:
    found = report_grid()
    assert found["settings"][0] | {"present": True} == found["settings"][0]
    assert 30 < len(found["settings"]) <= MOST_SETTINGS
    kinds = {(row["percentile"], row["k"], row["n"]) for row in found["settings"]}
    assert len(kinds) == len(found["settings"])
    assert found["budget_per_day"] == pytest.approx(0.48)
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_the_chart_names_failures_and_turns_to_another_k_of_n() -> None:
    found = report_grid()
    chart = what_if_chart(found)
    assert chart is not None
    steps = chart.layout["sliders"][0]["steps"]
    assert [step["label"] for step in steps] == ["1 of 1", "2 of 3", "3 of 5", "6 of 10", "12 of 20"]
    assert chart.layout["sliders"][0]["active"] == 2
    assert [trace["visible"] for trace in chart.traces] == steps[2]["args"][0]["visible"]
    for step in steps:
        assert sum(step["args"][0]["visible"]) == 3
    caught, by_chance, false = chart.traces[6:9]
    rows = [row for row in found["settings"] if (row["k"], row["n"]) == (3, 5)]
    rows.sort(key=lambda row: row["percentile"])
    assert caught["y"] == [row["events_caught"] for row in rows]
    assert by_chance["y"] == [row["events_by_chance"] for row in rows]
    assert len(false["y"]) == len(rows) == len(chart.layout["xaxis"]["tickvals"])
    hover = caught["text"][0]
    assert "&lt;b&gt;press&lt;/b&gt;" in hover
    assert "<b>" not in "".join(caught["text"])
    assert "press-05" in hover
    assert "outer race" in hover
    assert "Autoencoder" not in chart.caption
    assert "PCA at present, percentile 99.95 and 3 of 5: " in chart.caption
    assert "Who chooses a setting by these failures" in chart.caption


def test_the_chart_without_failures_has_one_panel_and_without_rates_is_none() -> None:
    rows, _, names = plant()
    scores = np.random.default_rng(5).exponential(size=5000)
    figures = {"low": {"threshold": LOW}, "page": {"percentile": 99.95, "threshold": 7.6}, "tail": None}
    given: dict[str, Any] = {"detector": "pca", "budget_per_machine_day": 0.02, "shifts": 20, "seed": 0}
    healthy = rows.label == HEALTHY
    calm = JudgedRows(
        *(part[healthy] for part in (rows.machine, rows.time_us, rows.label)), {"pca": rows.scores["pca"][healthy]}
    )
    chart = what_if_chart(grid(calm, [], names, scores, figures, PRESENT.policy, **given))
    assert chart is not None
    assert "yaxis2" not in chart.layout
    assert len(chart.traces) == len(chart.layout["sliders"][0]["steps"])
    assert "failure" not in chart.caption
    assert what_if_chart(report_grid(calendar=False)) is None
    assert what_if_chart({}) is None


# --- a build, and the score log of its release ------------------------------------------------------------------------


LOUD = """
calibrate:
  draws: 60
  low_percentile: 90
  page_percentile: 98
  policy: {k: 1, n: 3, window_minutes: 300}
  choice: {enabled: false}
release: {detector: energy_zscore, reference_rows: 1000}
"""


@pytest.fixture(scope="module")
def loud(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same build with a page tier that raises alerts: calibrated, judged and released anew."""
    folder = tmp_path_factory.mktemp("loud")
    for name in ("data", "metrics"):
        shutil.copytree(built / name, folder / name)
    kept = [line for line in SMALL_PARAMS.splitlines() if not line.startswith(("calibrate:", "release:"))]
    (folder / "params.yaml").write_text("\n".join(kept) + LOUD)
    before = Path.cwd()
    os.chdir(folder)
    try:
        for stage in (pipeline.calibrate, pipeline.evaluate, pipeline.release):
            stage.main()
    finally:
        os.chdir(before)
    return folder


@pytest.fixture(scope="module")
def release(loud: Path) -> Release:
    return load_release(loud / "data/release")


@pytest.fixture(scope="module")
def params(loud: Path) -> Params:
    return load_params(loud / "params.yaml")


@pytest.fixture(scope="module")
def log(loud: Path, release: Release, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The score log of the time after calibration."""
    start = dt.datetime.fromisoformat(read_json(loud / "metrics/split.json")["boundaries"]["test_start"])
    out = tmp_path_factory.mktemp("log")
    score_data_set(release, loud / "data/raw", out, since=start)
    return out


def test_the_present_setting_says_what_the_evaluation_said(loud: Path, params: Params) -> None:
    found = replay_evaluation(loud / "data/evaluation", Wanted(), params)
    told = read_json(loud / "metrics/evaluation.json")
    (row,) = found["settings"]
    in_service = told["in_service"]
    assert in_service["caught"]
    assert in_service["false_episodes"] > 0
    assert row["lead_time_hours"] == pytest.approx(in_service["caught"], abs=SECONDS)
    assert (row["events"], row["false_episodes"]) == (in_service["events"], in_service["false_episodes"])
    assert row["alerts"] == len(read_json(loud / "data/evaluation/episodes.json"))
    assert found["healthy_machine_days"] == in_service["machine_days"]
    assert found["machines"] == len(set(_seen(loud)))
    events = read_json(loud / "data/evaluation/events.json")
    assert {one["failure_id"] for one in found["failures"]} == {event["failure_id"] for event in events}
    assert {*row["missed"], *row["lead_time_hours"]} == {event["failure_id"] for event in events}


def _seen(built: Path) -> list[str]:
    split = read_table(built / "data/status/split.parquet").to_pandas()
    unseen = set(split.loc[split["role"] == "baseline", "machine_id"])
    test = split[(split["role"] == "test") & ~split["machine_id"].isin(unseen)]
    return [str(name) for name in test["machine_id"]]


def test_another_detector_is_replayed_with_its_own_thresholds(loud: Path, params: Params) -> None:
    found = replay_evaluation(loud / "data/evaluation", Wanted((90.0,)), params, detector="pca")
    assert found["detector"] == "pca"
    page = read_json(loud / "data/calibration/calibration.json")["detectors"]["pca"]["page"]
    scores = read_table(loud / "data/evaluation/scores.parquet").to_pandas()
    seen = scores[scores["machine_id"].isin(set(_seen(loud)))]
    assert found["settings"][0]["percentile"] == page["percentile"]
    assert (found["settings"][0]["alerts"] > 0) <= bool((seen["score_pca"] > page["threshold"]).any())
    assert found["settings"][1]["alerts"] > found["settings"][0]["alerts"]


@pytest.mark.parametrize("rows", [250, 1528, 50_000])
@pytest.mark.parametrize("with_tail", [False, True])
def test_a_bound_on_the_tail_probability_means_the_threshold(rows: int, with_tail: bool) -> None:
    rng = np.random.default_rng(rows)
    healthy, later = rng.exponential(size=rows), np.r_[rng.exponential(size=4000), np.linspace(0, 30, 999)]
    tail = fit_tail(healthy, np.arange(rows) // 3).tail if with_tail else None
    assert (tail is not None) == with_tail
    table = TailTable.of(healthy, tail=tail)
    scores = np.r_[later, healthy, np.nextafter(healthy, np.inf)]
    for percentile in (50.1, 90.0, 95.0, 99.0, 99.5, 99.9, 99.95, 99.99, 99.9999):
        above = scores > tier_threshold(healthy, percentile, tail)
        by_level = -table.probability(scores) > level_limit(percentile, table)
        if rows * (1 - percentile / 100) < 20_000:  # else the table keeps every few scores only
            np.testing.assert_array_equal(by_level, above)
        assert not (by_level & ~above).any()


def test_the_log_of_the_release_says_the_same_as_the_evaluation(
    loud: Path, params: Params, release: Release, log: Path
) -> None:
    """For every detector and percentile, for the failures that the evaluation judged; the log has more machines."""
    caught = 0
    for name in release.tails.names:
        wanted = Wanted((95.0, 99.0, 99.99), (1, 2), (1, 3))
        judged = replay_evaluation(loud / "data/evaluation", wanted, params, detector=name)
        logged = replay_score_log(log, release, wanted, params, detector=name, data_set=loud / "data/raw")
        known = {failure["failure_id"] for failure in judged["failures"]}
        assert known <= {failure["failure_id"] for failure in logged["failures"]}
        for here, there in zip(judged["settings"], logged["settings"], strict=True):
            leads = {key: value for key, value in there["lead_time_hours"].items() if key in known}
            assert leads == pytest.approx(here["lead_time_hours"], abs=SECONDS)
            assert there["false_episodes"] >= here["false_episodes"]
            caught += len(leads)
        assert logged["healthy_machine_days"] > judged["healthy_machine_days"]
    assert caught > 20


def test_the_log_raises_the_alerts_of_the_tier_that_it_names(params: Params, release: Release, log: Path) -> None:
    found = replay_score_log(log, release, Wanted(), params)
    table = pa.concat_tables([read_table(path) for path in sorted(log.glob("*.parquet"))]).unify_dictionaries()
    machine, _ = codes_and_names(table["machine_id"])
    line = Timeline.of(machine, times_us(table["timestamp"]), release.policy)
    tier = np.array(table["tier"].to_pylist())
    assert found["settings"][0]["alerts"] == len(page_episodes(line, tier != "none", tier == "page")) > 0
    assert found["notes"] == [
        f"{table.num_rows:,} of {table.num_rows:,} rows are as old as those that made or judged the release."
    ]


def test_a_log_without_a_maintenance_log_tells_alerts_and_nothing_of_failures(
    params: Params, release: Release, log: Path
) -> None:
    found = replay_score_log(log, release, Wanted((99.0,)), params, detector="ensemble")
    for row in found["settings"]:
        assert row["alerts"] >= 0
        assert row["alerts_per_day"] is not None
        for figure in ("events_caught", "false_episodes", "false_episodes_per_day", "median_lead_time_hours"):
            assert row[figure] is None
            assert "--data-set" in found["null_reasons"][figure]
    assert found["failures"] == []
    assert found["healthy_machine_days"] is None
    easy = replay_score_log(log, release, Wanted((99.0,)), params, budget=1e6)
    assert {row["budget_kept"] for row in easy["settings"]} == {"yes"}, "even if all of them were false"
    hard = replay_score_log(log, release, Wanted((60.0,), (1,), (1,)), params, budget=0.0)
    assert hard["settings"][1]["budget_kept"] is None


def as_the_service_writes(flat: Path, out: Path, layouts: Sequence[str]) -> Path:
    """The same rows in other files: of each day two shards that overlap in time, both in one, or the flat file."""
    for number, path in enumerate(sorted(flat.glob("*.parquet"))):
        layout = layouts[number % len(layouts)]
        if layout == "flat":
            shutil.copy(path, out)
            continue
        table = read_table(path)
        for part in range(2):
            rows = table.take(pa.array(np.arange(part, table.num_rows, 2)))
            write_table(out / path.stem / f"{2 * number + part:09}-ab12cd34.parquet", rows)
        if layout == "compacted":
            compact_day(out, path.stem)
            assert [file.name[:10] for file in (out / path.stem).iterdir()] == ["compacted-"]
    return out


@pytest.mark.parametrize("layouts", [["shards"], ["compacted"], ["flat", "shards", "compacted"]])
def test_every_layout_of_a_log_says_the_same(
    loud: Path, params: Params, release: Release, log: Path, tmp_path: Path, layouts: list[str]
) -> None:
    wanted, data_set = Wanted((95.0, 99.0), (1, 2), (1, 3)), loud / "data/raw"
    served = as_the_service_writes(log, tmp_path, layouts)
    told = replay_score_log(served, release, wanted, params, data_set=data_set)
    assert told == replay_score_log(log, release, wanted, params, data_set=data_set)
    assert told["settings"][0]["alerts"] > 0


def test_a_day_that_is_compacted_meanwhile_is_read_again(
    params: Params, release: Release, log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served, opened = as_the_service_writes(log, tmp_path, ["shards"]), pipeline.what_if_sources.read_groups
    waiting = sorted(path.name for path in served.iterdir())

    def read(*given: Any) -> pa.Table:
        while waiting:
            compact_day(served, waiting.pop())
        return opened(*given)

    monkeypatch.setattr(pipeline.what_if_sources, "read_groups", read)
    assert replay_score_log(served, release, Wanted(), params) == replay_score_log(log, release, Wanted(), params)


def test_scores_of_another_release_are_refused(params: Params, release: Release, log: Path, tmp_path: Path) -> None:
    first, second = sorted(log.glob("*.parquet"))[:2]
    shutil.copy(first, tmp_path)
    table = read_table(second)
    other = pa.array(["0123456789abcdef"] * table.num_rows).dictionary_encode().cast(table.schema.field("release").type)
    write_table(tmp_path / second.name, table.set_column(table.column_names.index("release"), "release", other))
    with pytest.raises(ReleaseError, match=f"got scores of release 0123456789abcdef, expected {release.id}"):
        replay_score_log(tmp_path, release, Wanted(), params)


def test_an_empty_log_is_refused(params: Params, release: Release, log: Path, tmp_path: Path) -> None:
    with pytest.raises(ContractError, match="score log: got no file with tail probabilities, expected Parquet files"):
        replay_score_log(tmp_path, release, Wanted(), params)
    first = min(log.glob("*.parquet"))
    write_table(tmp_path / first.name, read_table(first).slice(0, 0))
    with pytest.raises(ContractError, match="rows: got none, expected scored rows"):
        replay_score_log(tmp_path, release, Wanted(), params)


# --- the command ------------------------------------------------------------------------------------------------------


Run = Any


@pytest.fixture
def run(hearken: Run) -> Run:
    """The command in a folder: exit code, output, errors."""
    return partial(hearken, "what-if")


def test_the_table_names_every_failure_beside_the_present_setting(loud: Path, run: Run) -> None:
    code, out, err = run(loud, "--percentile", 99, "--percentile", 99.9, "--k", 1, "--n", 3, "--budget", 2)
    assert (code, err) == (0, "")
    for event in read_json(loud / "data/evaluation/events.json"):
        assert event["machine_id"] in out
        assert event["time"] in out
    lines = [line.split() for line in out.splitlines()]
    assert any(line[:5] == ["now", "98", "1", "of", "3"] for line in lines)
    assert any(line[:5] == ["2", "99.9", "1", "of", "3"] for line in lines)
    assert "budget 2 a day" in out
    assert "note: These failures judge the release" in out


def test_json_and_many_settings(loud: Path, run: Run) -> None:
    options = [part for value in (90, 95, 97, 99, 99.5, 99.9) for part in ("--percentile", value)]
    code, out, _ = run(loud, *options, "--k", 1, "--k", 2, "--n", 3, "--cool-down", 24, "--json")
    assert code == 0
    found = json.loads(out)
    assert len(found["settings"]) == 13
    assert {row["cool_down_hours"] for row in found["settings"][1:]} == {24}
    code, out, _ = run(loud, *options, "--k", 1, "--n", 3)
    assert code == 0
    assert "caught by" in out


def test_a_log_by_the_command(loud: Path, run: Run, log: Path) -> None:
    release = loud / "data/release"
    arguments = ("--log", log, "--release", release, "--data-set", loud / "data/raw", "--percentile", 99)
    code, out, _ = run(loud, *arguments)
    assert code == 0
    assert "Failures: lead time" in out
    code, out, _ = run(loud, "--log", log, "--release", release, "--percentile", 99)
    assert code == 0
    assert "No maintenance log was given" in out


def test_without_a_name_the_release_in_service_reads_the_log(
    loud: Path, run: Run, log: Path, release: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEARKEN_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("HEARKEN_DATABASE_URL", raising=False)
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    (tmp_path / "params.yaml").write_text("seed: 1\n")
    code, out, err = run(tmp_path, "--log", log)
    assert (code, out) == (2, "")
    assert "no release is in service" in err
    settings = Settings.of(tmp_path)
    engine = open_database(settings.database_url)
    promote(engine, register_release(engine, settings.releases, loud / "data/release", commit="abc").id)
    engine.dispose()
    code, out, err = run(tmp_path, "--log", log, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["detector"] == release.detector


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--percentile", "50"], "--percentile: got 50, expected above 50 and below 100."),
        (["--k", "4"], "--k: got 4, expected at most n, which is 3."),
        (["--detector", "oracle"], "--detector: got 'oracle', expected one of autoencoder, vae"),
        (["--budget", "-1"], "--budget: got -1, expected false pages a day from 0 on."),
        (["--scores", "data/raw"], "evaluation: got no scores.parquet, expected data/evaluation of a build"),
        (["--scores", "/tmp"], "evaluation: got no scores.parquet, expected data/evaluation of a build"),
        (["--scores", "/"], "evaluation: got no scores.parquet, expected data/evaluation of a build"),
        (["--scores", "/nope"], "evaluation: got no scores.parquet, expected data/evaluation of a build"),
        (["--n", "9" * 23, "--k", "1"], "expected at most 100,000."),
        (["--release", "v1"], "--release: got v1 without --log"),
        (["--log", "data/raw", "--release", "data/release"], "score log: got no file with tail probabilities"),
        (["--log", "data/evaluation", "--release", "data/release"], "score log: got no file with tail probabilities"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(loud: Path, run: Run, arguments: list[str], message: str) -> None:
    code, out, err = run(loud, *arguments)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert message in err


def test_the_largest_policy_that_may_be_asked_for_is_replayed(loud: Path, run: Run) -> None:
    most = ("--n", 100_000, "--k", 1, "--window", 5_256_000, "--cool-down", 87_600)
    code, out, err = run(loud, *most, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["settings"][1]["n"] == 100_000


def test_a_machines_name_is_neither_markup_nor_a_command(loud: Path, tmp_path: Path, run: Run) -> None:
    for name in ("data/evaluation", "data/calibration", "metrics"):
        shutil.copytree(loud / name, tmp_path / name)
    events = read_json(tmp_path / "data/evaluation/events.json")
    name, new = events[0]["machine_id"], "[red]x[/red]\x1b[2J"
    for file in ("data/evaluation/scores.parquet", "data/calibration/scores.parquet"):
        table = read_table(tmp_path / file)
        names = [new if machine == name else machine for machine in table["machine_id"].to_pylist()]
        column = pa.array(names).dictionary_encode().cast(table.schema.field("machine_id").type)
        write_table(tmp_path / file, table.set_column(table.column_names.index("machine_id"), "machine_id", column))
    renamed = [event | {"machine_id": new if event["machine_id"] == name else event["machine_id"]} for event in events]
    write_json(tmp_path / "data/evaluation/events.json", renamed)
    code, out, _ = run(tmp_path)
    assert code == 0
    assert "[red]x[/red]\\x1b[2J" in out.replace("\n", "")

import json

import numpy as np
import pytest

from pipeline.alerts import MINUTE, AlertPolicy, Timeline
from pipeline.judge import judge
from pipeline.judging.judged import FAULTY, HEALTHY, UNKNOWN, Event, JudgedRows
from pipeline.judging.outcomes import budget_threshold, caught_by_chance, outcome_at
from pipeline.params import CalibrateParams, EvaluateParams
from pipeline.schema import MICROSECONDS_PER_DAY

POLICY = AlertPolicy(1, 1, MINUTE, 30 * MINUTE)
HOUR = 60 * MINUTE
QUICK = {"evaluate": EvaluateParams(chance_shifts=50), "calibrate": CalibrateParams(draws=60)}


def line_of(hours: int, machine: int = 0) -> Timeline:
    return Timeline.of(np.full(hours, machine, np.int32), np.arange(hours) * HOUR, POLICY)


def at(hours: int, *alerts: int) -> np.ndarray:
    exceeds = np.zeros(hours, bool)
    exceeds[list(alerts)] = True
    return exceeds


class TestWhatIsCaught:
    event = Event("f", 0, 50 * HOUR, 60 * HOUR, 40 * HOUR)

    @pytest.mark.parametrize(
        ("alerts", "caught", "false"),
        [
            ((55,), 5.0, 0),
            ((10,), None, 1),
            ((10, 55), 5.0, 1),
            ((61,), None, 1),
            ((45,), None, 0),  # in the unknown stretch, closed before the fault is known: neither
            ((), None, 0),
        ],
    )
    def test_by_when_the_alert_opens(self, alerts, caught, false) -> None:
        outcome = outcome_at(at(100, *alerts), line_of(100), [self.event])
        assert outcome.false_episodes == false
        assert (outcome.caught.get("f", (0, None))[1]) == caught

    def test_an_alert_of_the_unknown_stretch_that_still_stands_catches_from_then_on(self) -> None:
        policy = AlertPolicy(1, 1, MINUTE, 90 * MINUTE)
        line = Timeline.of(np.zeros(100, np.int32), np.arange(100) * HOUR, policy)
        outcome = outcome_at(at(100, *range(45, 53)), line, [self.event])
        assert outcome.caught["f"][1] == 10.0

    def test_another_machine_catches_nothing(self) -> None:
        assert not outcome_at(at(100, 55), line_of(100, machine=1), [self.event]).caught


def test_chance_catches_what_its_share_of_time_says() -> None:
    event = Event("f", 0, 0, 24 * HOUR, 0)
    found = caught_by_chance(at(100, 80), line_of(100), [event], 2000, seed=1)
    assert found == pytest.approx(0.25, abs=0.04)
    assert caught_by_chance(at(100), line_of(100), [event], 50, seed=1) == 0.0


def test_the_budget_threshold_keeps_the_budget_and_is_the_lowest_that_does(rng) -> None:
    scores = rng.normal(size=2000)
    line = line_of(2000)
    for allowed in (0.0, 3.0, 20.0):
        threshold = budget_threshold(scores, line, allowed)
        assert line.episodes(line.alert_rows(scores > threshold)).weight().sum() <= allowed
    assert budget_threshold(scores, line, 0.0) > budget_threshold(scores, line, 20.0)


def fleet(rng, machines: int, days: int) -> tuple[np.ndarray, np.ndarray]:
    hours = days * 24
    return np.repeat(np.arange(machines, dtype=np.int32), hours), np.tile(np.arange(hours) * HOUR, machines)


def test_a_perfect_and_a_blind_detector(rng) -> None:
    machine, time = fleet(rng, 6, 40)
    label = np.zeros(len(machine), np.int8)
    label[(machine < 2) & (time > 30 * MICROSECONDS_PER_DAY)] = FAULTY
    noise = rng.normal(size=len(machine))
    test = JudgedRows(machine, time, label, {"sees": noise + 8 * label, "blind": rng.normal(size=len(machine))})
    healthy = JudgedRows(
        machine, time, np.zeros(len(machine), np.int8), {name: rng.normal(size=len(machine)) for name in test.scores}
    )
    end = int(time.max())
    events = [Event(f"f{code}", code, 30 * MICROSECONDS_PER_DAY, end, 30 * MICROSECONDS_PER_DAY) for code in (0, 1)]
    found = judge(test, healthy, events, list("abcdef"), POLICY, release_detector="sees", seed=1, **QUICK).figures
    assert found["detectors"]["sees"]["auroc"] > 0.99
    assert found["detectors"]["sees"]["events_caught"] == 2
    assert found["pairs"]["only"]["sees"]
    low, high = found["detectors"]["blind"]["auroc_ci"]
    assert low <= found["detectors"]["blind"]["auroc"] <= high
    assert (
        found["tiers"]["low"]["ci_low"]
        <= found["tiers"]["low"]["false_positive_rate"]
        <= found["tiers"]["low"]["ci_high"]
    )
    assert found["tiers"]["low"]["false_positive_rate"] == pytest.approx(0.005, abs=0.004)


def test_what_stands_behind_the_totals_is_published(rng) -> None:
    machine, time = fleet(rng, 6, 40)
    label = np.zeros(len(machine), np.int8)
    label[(machine < 2) & (time > 30 * MICROSECONDS_PER_DAY)] = FAULTY
    scores = {"sees": rng.normal(size=len(machine)) + 8 * label, "ensemble": rng.normal(size=len(machine))}
    test = JudgedRows(machine, time, label, scores, np.zeros(len(machine), np.int32))
    healthy = JudgedRows(
        machine, time - 41 * MICROSECONDS_PER_DAY, np.zeros(len(machine), np.int8),
        {name: rng.normal(size=len(machine)) for name in scores},
    )  # fmt: skip
    end, start = int(time.max()), 30 * MICROSECONDS_PER_DAY
    events = [Event("f0", 0, start, end, start, "wear"), Event("f1", 1, start, end, start)]
    judged = judge(test, healthy, events, list("abcdef"), POLICY, release_detector="sees", seed=1, **QUICK)
    found = judged.figures
    json.dumps([found, judged.curves], allow_nan=False)
    sees = found["detectors"]["sees"]
    low, middle, high = sees["lead_time_quartiles_hours"]
    assert low <= middle == sees["median_lead_time_hours"] <= high
    assert sees["machine_days_observed"] == 240
    # two machines stand in alert for their last ten days, and false episodes add a few
    assert 20 <= sees["machine_days_with_alert"] <= 22 + sees["false_episodes"]
    assert sees["machine_days_with_alert_share"] == round(sees["machine_days_with_alert"] / 240, 6)
    assert {mode: row["detectors"]["sees"]["events_caught"] for mode, row in found["failure_modes"].items()} == {
        "wear": 1, "unknown": 1
    }  # fmt: skip
    assert found["pairs"]["against_release"]["detectors"]["ensemble"]["only_against"] >= 1
    assert found["pairs"]["against_best_baseline"]["against"] is None
    assert found["rates_over_time"]["epochs_since"]["rows"] == 0
    operating = {row["detector"]: row for row in judged.curves if row["kind"] == "operating"}
    for name, row in operating.items():
        figures = found["detectors"][name]
        assert row["threshold"] == figures["threshold"]
        assert (row["false_episodes"], row["events_caught"]) == (figures["false_episodes"], figures["events_caught"])
        assert row["false_episodes_per_day"] == figures["false_episodes_per_day"]
    swept = [row for row in judged.curves if row["detector"] == "sees" and row["kind"] == "sweep"]
    assert swept[0]["false_episodes"] == 0
    assert swept[-1]["false_episodes"] > 10  # five times the budget of 0.02 a day on 220 healthy machine-days


def test_without_failures_figures_are_null_with_their_reason(rng) -> None:
    machine, time = fleet(rng, 3, 30)
    rows = JudgedRows(machine, time, np.zeros(len(machine), np.int8), {"pca": rng.normal(size=len(machine))})
    found = judge(rows, rows, [], list("abc"), POLICY, release_detector="pca", seed=1, **QUICK).figures
    row = found["detectors"]["pca"]
    assert found["failure_modes"] is None
    assert "failure_modes" in found["null_reasons"]
    for key in ("auroc", "partial_auroc", "events_caught", "events_by_chance", "lead_time_quartiles_hours"):
        assert row[key] is None
        assert key in found["null_reasons"]
    assert found["tiers"]["page"]["threshold"] is not None


def test_without_healthy_rows_false_episodes_and_curves_are_null_with_their_reason(rng) -> None:
    machine, time = fleet(rng, 3, 5)
    calibration = JudgedRows(
        machine,
        time - 6 * MICROSECONDS_PER_DAY,
        np.zeros(len(machine), np.int8),
        {"pca": rng.normal(size=len(machine))},
    )
    faulty = JudgedRows(machine, time, np.full(len(machine), FAULTY, np.int8), {"pca": rng.normal(size=len(machine))})
    judged = judge(faulty, calibration, [], list("abc"), POLICY, release_detector="pca", seed=1, **QUICK)
    assert [row["kind"] for row in judged.curves] == ["operating"]
    for key in ("curves", "false_episodes_per_day", "rates_over_time.weeks", "rates_over_time.second_half"):
        assert "no healthy test rows" in judged.figures["null_reasons"][key]


def test_infinite_scores_of_test_rows_are_the_highest(rng) -> None:
    machine, time = fleet(rng, 3, 30)
    faulty = (machine == 0) & (time > 20 * MICROSECONDS_PER_DAY)
    scores = rng.normal(size=len(machine))
    healthy = JudgedRows(machine, time, np.zeros(len(machine), np.int8), {"pca": scores})
    events = [Event("f", 0, 20 * MICROSECONDS_PER_DAY, int(time.max()), 20 * MICROSECONDS_PER_DAY)]
    found = []
    for level in (np.inf, 99.0):
        rows = JudgedRows(machine, time, faulty.astype(np.int8), {"pca": np.where(faulty, level, scores)})
        judged = judge(rows, healthy, events, list("abc"), POLICY, release_detector="pca", seed=1, **QUICK)
        json.dumps([judged.figures, judged.roc, judged.curves, judged.what_if], allow_nan=False)
        figures = judged.figures["detectors"]["pca"]
        found.append([figures[key] for key in ("auroc", "partial_auroc", "events_caught")])
    assert found[0] == found[1]
    assert found[0] == [1.0, None, 1]


def test_with_synthetic_dates_rates_per_day_are_null_and_lead_times_stand(rng) -> None:
    machine, time = fleet(rng, 3, 30)
    label = np.where((machine == 0) & (time > 20 * MICROSECONDS_PER_DAY), FAULTY, HEALTHY).astype(np.int8)
    rows = JudgedRows(machine, time, label, {"pca": rng.normal(size=len(machine)) + 9 * label})
    healthy = JudgedRows(machine, time, np.zeros(len(machine), np.int8), {"pca": rng.normal(size=len(machine))})
    events = [Event("f", 0, 20 * MICROSECONDS_PER_DAY, int(time.max()), 20 * MICROSECONDS_PER_DAY)]
    found = judge(
        rows, healthy, events, list("abc"), POLICY, release_detector="pca", calendar=False, seed=1, **QUICK
    ).figures
    assert found["detectors"]["pca"]["false_episodes_per_day"] is None
    assert "synthetic" in found["null_reasons"]["false_episodes_per_day"]
    assert found["detectors"]["pca"]["median_lead_time_hours"] > 100


def test_unknown_rows_are_out_of_the_row_metrics(rng) -> None:
    machine, time = fleet(rng, 3, 30)
    label = np.where((machine == 0) & (time > 20 * MICROSECONDS_PER_DAY), FAULTY, HEALTHY).astype(np.int8)
    scores = rng.normal(size=len(machine)) + 3 * label
    rows = JudgedRows(machine, time, label, {"pca": scores})
    hidden = label.copy()
    hidden[(machine == 1)] = UNKNOWN
    spoilt = np.where(machine == 1, 100.0, scores)
    first = judge(rows, rows, [], list("abc"), POLICY, release_detector="pca", seed=1, **QUICK).figures
    keep = machine != 1
    less = JudgedRows(machine[keep], time[keep], label[keep], {"pca": scores[keep]})
    same = JudgedRows(machine, time, hidden, {"pca": spoilt})
    one = judge(less, rows, [], list("abc"), POLICY, release_detector="pca", seed=1, **QUICK).figures
    two = judge(same, rows, [], list("abc"), POLICY, release_detector="pca", seed=1, **QUICK).figures
    assert one["detectors"]["pca"]["auroc"] == two["detectors"]["pca"]["auroc"]
    assert first["detectors"]["pca"]["auroc"] is not None

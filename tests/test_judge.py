import numpy as np
import pytest

from pipeline.alerts import MINUTE, AlertPolicy, Timeline
from pipeline.judge import (
    FAULTY,
    HEALTHY,
    UNKNOWN,
    Event,
    JudgedRows,
    budget_threshold,
    caught_by_chance,
    judge,
    outcome_at,
)
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


def test_without_failures_figures_are_null_with_their_reason(rng) -> None:
    machine, time = fleet(rng, 3, 30)
    rows = JudgedRows(machine, time, np.zeros(len(machine), np.int8), {"pca": rng.normal(size=len(machine))})
    found = judge(rows, rows, [], list("abc"), POLICY, release_detector="pca", seed=1, **QUICK).figures
    row = found["detectors"]["pca"]
    for key in ("auroc", "average_precision", "partial_auroc", "events_caught", "events_by_chance"):
        assert row[key] is None
        assert key in found["null_reasons"]
    assert found["tiers"]["page"]["threshold"] is not None


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

import json
from dataclasses import replace

import numpy as np
import pytest

from pipeline.alerts import AlertPolicy, Timeline
from pipeline.counts import overdispersion, upper_bound
from pipeline.errors import ContractError
from pipeline.params import ChoiceParams, PolicyParams
from pipeline.policy_choice import PolicyChoice, ScoredRows, TuneFailureRows, choose_policy
from pipeline.policy_state import PolicyRows, advance
from pipeline.schema import MICROSECONDS_PER_HOUR as HOUR

STEP = HOUR // 6
ROWS = 1440  # 10 days of a machine
LEVELS = {99.5: 1.0, 99.8: 2.0, 99.9: 3.0, 99.95: 4.0, 99.99: 5.0}
ONE_OF_ONE = ChoiceParams(page_percentiles=(99.8, 99.9, 99.95, 99.99), k_of_n=((1, 1),), cool_down_hours=(0,))


def quiet(machines: int = 20) -> ScoredRows:
    """Healthy rows every ten minutes, all below every tier: 200 machine-days, on which 0.02 a day allows 4."""
    machine = np.repeat(np.arange(machines, dtype=np.int32), ROWS)
    time_us = np.tile(np.arange(ROWS) * STEP, machines)
    return ScoredRows(machine, time_us, np.tile(np.linspace(0, 0.5, ROWS), machines))


def raised(rows: ScoredRows, machine: int, start: int, count: int, score: float) -> ScoredRows:
    """The same with some rows of a machine at another score."""
    scores = rows.score.copy()
    scores[machine * ROWS + start : machine * ROWS + start + count] = score
    return replace(rows, score=scores)


def failures(**levels: list[tuple[float, float]]) -> TuneFailureRows:
    """Two days before each failure, which is at hour 48: its score from each hour on, 0 before."""
    hours = np.arange(0, 48, 1 / 6)
    parts = []
    for steps in levels.values():
        score = np.zeros(len(hours))
        for hour, level in steps:
            score[hours >= hour] = level
        parts.append(score)
    ids = np.repeat(list(levels), len(hours))
    time_us = np.tile((hours * HOUR).astype(np.int64), len(levels))
    return TuneFailureRows(ids, time_us, np.concatenate(parts), dict.fromkeys(levels, 48 * HOUR))


def choose(
    healthy: ScoredRows,
    tune: TuneFailureRows,
    choice: ChoiceParams = ONE_OF_ONE,
    budget: float = 0.02,
    **changed: object,
) -> PolicyChoice:
    settings = {"low_percentile": 99.5, "page_percentile": 99.95, "budget": budget} | changed
    return choose_policy(healthy, tune, LEVELS.__getitem__, choice, PolicyParams(), **settings)


def by_percentile(choice: PolicyChoice, key: str) -> list:
    return [row[key] for row in choice.table]


class TestWithFailures:
    def test_most_caught_within_the_budget_wins(self) -> None:
        tune = failures(weak=[(40, 2.5)], strong=[(40, 6.0)])
        found = choose(quiet(), tune)
        assert by_percentile(found, "caught") == [["strong", "weak"], ["strong"], ["strong"], ["strong"]]
        assert found.page_percentile == 99.8
        # four pages on healthy rows: the upper bound is above 4, so the most sensitive is not within the budget
        noisy = quiet()
        for machine in range(4):
            noisy = raised(noisy, machine, 500, 3, 2.5)
        found = choose(noisy, tune)
        assert by_percentile(found, "false_page_episodes") == [4, 0, 0, 0]
        assert by_percentile(found, "within_budget") == [False, True, True, True]
        assert found.page_percentile == 99.95
        assert found.chosen["caught"] == ["strong"]
        assert choose(noisy, tune, budget=0.05).page_percentile == 99.8

    def test_then_the_longer_lead_wins_if_it_is_an_hour_or_more(self) -> None:
        # 99.9 and below page at hour 30, 99.95 half an hour later, 99.99 two hours later
        found = choose(quiet(), failures(one=[(30, 3.5), (30.5, 4.5), (32, 6.0)]))
        assert by_percentile(found, "median_lead_time_hours") == [18.0, 18.0, 17.5, 16.0]
        assert found.page_percentile == 99.95
        # an hour later: then the lead counts, and of two with the same lead the nearer to the default
        found = choose(quiet(), failures(one=[(30, 3.5), (31, 4.5)]))
        assert by_percentile(found, "median_lead_time_hours") == [18.0, 18.0, 17.0, None]
        assert found.page_percentile == 99.9

    def test_the_lead_is_the_median_over_the_caught_failures_from_the_first_page(self) -> None:
        tune = failures(a=[(10, 6.0), (11, 0.0), (20, 6.0)], b=[(40, 6.0)], c=[(44, 6.0)], d=[(46, 1.5)])
        found = choose(quiet(), tune)
        assert found.chosen["caught"] == ["a", "b", "c"]
        assert found.chosen["median_lead_time_hours"] == 8.0

    @pytest.mark.parametrize(
        ("changed", "expected"),
        [
            ({"k_of_n": ((3, 5), (1, 1), (2, 3))}, (1, 1, 0, 99.95)),
            ({"k_of_n": ((3, 5), (2, 5), (4, 8))}, (2, 5, 0, 99.95)),
            ({"cool_down_hours": (24, 0, 6)}, (1, 1, 0, 99.95)),
            ({"cool_down_hours": (24, 6)}, (1, 1, 6, 99.95)),
            ({"page_percentiles": (99.99, 99.8, 99.9)}, (1, 1, 0, 99.99)),
            ({"page_percentiles": (99.8, 99.9)}, (1, 1, 0, 99.9)),
        ],
    )
    def test_ties_go_to_the_simplest(self, changed: dict, expected: tuple) -> None:
        choice = ChoiceParams(**{**ONE_OF_ONE.model_dump(), **changed})
        chosen = choose(quiet(), failures(one=[(10, 9.0)]), choice).chosen
        assert (chosen["k"], chosen["n"], chosen["cool_down_hours"], chosen["page_percentile"]) == expected

    def test_a_policy_that_asks_for_more_rows_is_chosen_where_it_keeps_the_budget(self) -> None:
        healthy = quiet()
        for machine in range(10):
            healthy = raised(healthy, machine, 700, 1, 9.0)
        choice = ChoiceParams(page_percentiles=(99.95,), k_of_n=((1, 1), (3, 5)), cool_down_hours=(0,))
        found = choose(healthy, failures(one=[(40, 9.0)]), choice)
        assert by_percentile(found, "false_page_episodes") == [10, 0]
        assert (found.policy.k, found.policy.n) == (3, 5)
        # two rows later than the first one that exceeds
        assert found.chosen["median_lead_time_hours"] == pytest.approx(8 - 2 / 6, abs=1e-3)

    def test_rows_that_span_longer_than_asked_for_are_left_out(self) -> None:
        shapes = ((1, 1), (12, 20), (60, 120))  # of rows every ten minutes: 3 h 20 min, and 20 h
        choice = ChoiceParams(page_percentiles=(99.95,), k_of_n=shapes, cool_down_hours=(0,), longest_hours=4)
        found = choose(quiet(), failures(one=[(10, 9.0)]), choice)
        assert [(row["k"], row["n"]) for row in found.table] == [(1, 1), (12, 20)]
        assert "Left out, longer than 4 h of rows 10 minutes apart: 60 of 120." in found.notes
        all_longer = ChoiceParams(**choice.model_dump() | {"k_of_n": shapes[1:], "longest_hours": 1})
        assert [row["n"] for row in choose(quiet(), failures(one=[(10, 9.0)]), all_longer).table] == [20]
        enough = ChoiceParams(**choice.model_dump() | {"longest_hours": 20})
        assert [row["n"] for row in choose(quiet(), failures(one=[(10, 9.0)]), enough).table] == [1, 20, 120]

    def test_policies_longer_than_the_pieces_of_a_sample_are_left_out(self) -> None:
        rows = quiet()
        hours = rows.time_us // (6 * STEP)
        sampled = ScoredRows(*(values[hours % 12 == 5] for values in (rows.machine, rows.time_us, rows.score)))
        choice = ChoiceParams(page_percentiles=(99.95,), k_of_n=((1, 1), (3, 5), (12, 20)), cool_down_hours=(0,))
        found = choose(sampled, failures(one=[(10, 9.0)]), choice, budget=0.2)
        assert [(row["k"], row["n"]) for row in found.table] == [(1, 1), (3, 5)]
        assert "Left out, as healthy rows come in pieces of some 6 rows: 12 of 20." in found.notes

    def test_a_cool_down_is_chosen_where_only_it_keeps_the_budget(self) -> None:
        healthy = quiet()
        for start in range(500, 600, 12):
            healthy = raised(healthy, 3, start, 1, 9.0)
        choice = ChoiceParams(page_percentiles=(99.95,), k_of_n=((1, 1),), cool_down_hours=(0, 24))
        found = choose(healthy, failures(one=[(40, 9.0)]), choice)
        assert by_percentile(found, "false_page_episodes") == [9, 1]
        assert found.policy.cool_down_us == 24 * HOUR

    def test_each_failure_is_a_sequence_of_its_own(self) -> None:
        # on one machine: the first failure's last row and the second one's first ones would make 3 of 5
        times = np.array([0, 1, 2, 3]) * STEP
        tune = TuneFailureRows(np.array(["a", "a", "b", "b"]), times, np.full(4, 9.0), {"a": 2 * STEP, "b": 4 * STEP})
        choice = ChoiceParams(page_percentiles=(99.95,), k_of_n=((3, 5), (2, 5)), cool_down_hours=(0,))
        assert by_percentile(choose(quiet(), tune, choice), "caught") == [[], ["a", "b"]]

    def test_the_order_of_rows_does_not_matter(self, rng: np.random.Generator) -> None:
        healthy = quiet()
        for machine in range(7):
            healthy = raised(healthy, machine, 300, 40, 4.5)
        tune = failures(weak=[(40, 2.5)], strong=[(30, 6.0)])
        choice = ChoiceParams(page_percentiles=(99.8, 99.95, 99.99))
        one, two = rng.permutation(len(healthy.score)), rng.permutation(len(tune.score))
        mixed = ScoredRows(healthy.machine[one], healthy.time_us[one], healthy.score[one])
        mixed_tune = TuneFailureRows(tune.failure[two], tune.time_us[two], tune.score[two], tune.failed_us)
        assert choose(mixed, mixed_tune, choice) == choose(healthy, tune, choice)


class TestFalsePages:
    def test_a_page_counts_again_for_each_further_day_that_it_stays_open(self) -> None:
        healthy = raised(quiet(), 2, 100, 3 * 144, 9.0)
        assert set(by_percentile(choose(healthy, TuneFailureRows.none()), "false_page_episodes")) == {3}

    def test_they_are_the_protocols_episodes_where_both_tiers_are_one(self, rng: np.random.Generator) -> None:
        healthy = replace(quiet(), score=rng.exponential(0.8, 20 * ROWS))
        choice = ChoiceParams(page_percentiles=(99.8,), k_of_n=((1, 1), (2, 4)), cool_down_hours=(0,))
        found = choose_policy(
            healthy, TuneFailureRows.none(), lambda _: 2.0, choice, PolicyParams(),
            low_percentile=99.5, page_percentile=99.8, budget=10.0,
        )  # fmt: skip
        for row, (k, n) in zip(found.table, choice.k_of_n, strict=True):
            policy = AlertPolicy.fitted_to(PolicyParams(k=k, n=n), STEP)
            line = Timeline.of(healthy.machine, healthy.time_us, policy)
            episodes = line.episodes(line.alert_rows(healthy.score > 2.0))
            assert row["false_page_episodes"] == int(episodes.weight().sum()) > 50

    def test_the_low_tier_alone_is_no_page(self) -> None:
        assert set(
            by_percentile(choose(raised(quiet(), 1, 9, 50, 1.5), TuneFailureRows.none()), "false_page_episodes")
        ) == {0}

    def test_rows_below_the_low_tier_take_part_by_their_place_alone(self) -> None:
        rng = np.random.default_rng(4)
        healthy = quiet()
        walk = np.convolve(rng.normal(size=len(healthy.score)), np.ones(6), "same")
        healthy, counted = replace(healthy, score=walk), set()
        for row in choose(healthy, failures(one=[(30, 3.5)]), ChoiceParams(page_percentiles=(99.8, 99.95))).table:
            params = PolicyParams(k=row["k"], n=row["n"], cool_down_hours=row["cool_down_hours"])
            policy = replace(AlertPolicy.fitted_to(params, STEP), no_data_us=None)
            rows = PolicyRows.above(healthy.machine, healthy.time_us, walk, LEVELS[99.5], row["threshold"])
            _, alerts = advance(None, rows, policy)
            pages = alerts.take(alerts.paged_us >= 0).page_weight().sum()
            assert row["false_page_episodes"] == pages
            counted.add(pages)
        assert len(counted) > 5

    def test_machines_without_a_page_count_among_the_machines(self) -> None:
        healthy = raised(raised(quiet(), 0, 10, 1, 9.0), 0, 500, 1, 9.0)
        row = choose(healthy, TuneFailureRows.none()).table[0]
        counts = np.r_[2, np.zeros(19, int)]
        assert row["overdispersion"] == pytest.approx(overdispersion(counts)) == pytest.approx(2.0)
        assert row["upper"] == pytest.approx(upper_bound(2, 2.0), abs=1e-3)
        assert row["upper_per_machine_day"] == pytest.approx(row["upper"] / 200, abs=1e-6)

    def test_the_confidence_is_a_setting(self) -> None:
        tune = TuneFailureRows.none()
        assert choose(quiet(), tune, confidence=0.99).table[0]["upper"] == pytest.approx(-np.log(0.01), abs=1e-5)


class TestWithoutABudgetThatHolds:
    def test_the_smallest_bound_decides_and_a_note_says_so(self) -> None:
        healthy = quiet()
        for machine in range(20):
            healthy = raised(healthy, machine, 500, 3, 4.5)
        for machine in range(8):
            healthy = raised(healthy, machine, 900, 3, 9.0)
        found = choose(healthy, failures(weak=[(40, 2.5)], strong=[(40, 6.0)]))
        assert not any(by_percentile(found, "within_budget"))
        assert found.page_percentile == 99.99
        assert found.chosen["upper"] == min(by_percentile(found, "upper"))
        assert found.notes[-1] == (
            "The budget allows 4.00 false page episodes on 200.0 machine-days of calibration rows, and no policy keeps "
            "it. The smallest upper bound decided."
        )

    def test_too_few_rows_to_show_anything_are_named(self) -> None:
        found = choose(quiet(5), failures(weak=[(40, 2.5)], strong=[(40, 6.0)]))
        # all have the same bound: then failures caught decide, as ever
        assert found.page_percentile == 99.8
        assert found.notes[-1].startswith(
            "The budget allows 1.00 false page episodes on 50.0 machine-days of calibration rows, too few to show that "
            "a policy keeps it: even without one the upper bound is 2.30."
        )


class TestWithoutFailures:
    def test_with_too_few_rows_besides_the_policy_of_params_yaml_stands(self) -> None:
        found = choose(quiet(5), TuneFailureRows.none())
        assert len(found.table) == 1
        assert (found.policy.k, found.policy.n, found.page_percentile) == (3, 5, 99.95)
        assert "the policy is that of params.yaml" in found.notes[0]
        assert found.notes[1].endswith("even without one the upper bound is 2.30.")

    nothing = "There is no tune failure with rows before it: nothing could be tuned, the budget alone decided."

    def test_the_most_sensitive_within_the_budget_is_chosen(self) -> None:
        noisy = quiet()
        for machine in range(4):
            noisy = raised(noisy, machine, 500, 3, 2.5)
        choice = ChoiceParams(**{**ONE_OF_ONE.model_dump(), "k_of_n": ((12, 20), (1, 1)), "cool_down_hours": (24, 0)})
        found = choose(noisy, TuneFailureRows.none(), choice)
        # 12 of 20 keeps the budget at the lowest percentile, 1 of 1 does not
        chosen = found.chosen
        assert (chosen["page_percentile"], chosen["k"], chosen["n"], chosen["cool_down_hours"]) == (99.8, 12, 20, 0)
        assert self.nothing in found.notes
        assert found.failures == ()
        found = choose(noisy, TuneFailureRows.none())
        assert found.page_percentile == 99.9

    def test_a_threshold_is_the_one_of_its_percentile_and_never_a_lowest_score(self) -> None:
        for tune in (TuneFailureRows.none(), failures(silent=[(0, 0.0)])):
            found = choose(quiet(), tune)
            assert found.chosen["threshold"] == LEVELS[found.page_percentile]
            assert by_percentile(found, "threshold") == [2.0, 3.0, 4.0, 5.0]

    def test_failures_without_rows_before_them_tune_nothing_and_are_named(self) -> None:
        tune = replace(TuneFailureRows.none(), failed_us={"gone": HOUR, "lost": HOUR})
        found = choose(quiet(), tune)
        assert found.page_percentile == 99.8
        assert found.failures == ("gone", "lost")
        assert found.notes == (self.nothing, "2 of 2 tune failures have no row before them: gone, lost.")

    def test_rows_without_scores_are_no_rows(self) -> None:
        tune = failures(one=[(0, np.nan)], two=[(40, 9.0)])
        found = choose(quiet(), tune)
        assert found.chosen["caught"] == ["two"]
        assert found.notes == (
            "The policy was chosen on one tune failure: it may be luck.",
            "1 of 2 tune failures have no row before them: one.",
        )


class TestBadInput:
    def test_one_failure_is_enough_and_is_noted(self) -> None:
        found = choose(quiet(), failures(one=[(40, 2.5)]))
        assert found.page_percentile == 99.8
        assert found.notes == ("The policy was chosen on one tune failure: it may be luck.",)
        assert choose(quiet(), failures(a=[(4, 9)], b=[(4, 9)])).notes[0].startswith("The policy was chosen on 2 tune")
        assert choose(quiet(), failures(**{name: [(4, 9)] for name in "abcde"})).notes == ()

    def test_failures_that_nothing_catches_leave_the_simplest_and_a_note(self) -> None:
        found = choose(quiet(), failures(one=[(40, 0.7)]))
        assert found.page_percentile == 99.95
        assert found.chosen["median_lead_time_hours"] is None
        assert "No policy within the budget catches a tune failure." in found.notes

    def test_a_failure_of_unknown_time_is_at_its_last_row(self) -> None:
        tune = replace(failures(one=[(40, 9.0)]), failed_us={})
        assert choose(quiet(), tune).chosen["median_lead_time_hours"] == pytest.approx(8 - 1 / 6, abs=1e-3)

    def test_infinite_scores_before_a_failure_are_above_every_tier(self) -> None:
        found = choose(quiet(), failures(one=[(40, np.inf)]))
        assert by_percentile(found, "caught") == [["one"]] * 4

    @pytest.mark.parametrize(
        ("score", "message"),
        [
            (np.full(3, 7.0), "healthy scores: got 3 scores, all 7, expected scores that differ"),
            (np.array([1, np.nan, 2]), "healthy scores: got 1 that are no finite numbers"),
            (np.array([1, np.inf, 2]), "healthy scores: got 1 that are no finite numbers"),
            (np.empty(0), "healthy calibration rows: got 0, expected some"),
        ],
    )
    def test_healthy_scores_that_tell_nothing_are_refused(self, score: np.ndarray, message: str) -> None:
        rows = ScoredRows(np.zeros(len(score), np.int32), np.arange(len(score)) * STEP, score)
        with pytest.raises(ContractError, match=message):
            choose(rows, failures(one=[(4, 9)]))

    def test_a_threshold_that_is_no_number_is_refused(self) -> None:
        with pytest.raises(ContractError, match=r"threshold of percentile 99.5: got nan, expected a finite score"):
            choose_policy(
                quiet(), TuneFailureRows.none(), lambda _: float("nan"), ONE_OF_ONE, PolicyParams(),
                low_percentile=99.5, page_percentile=99.95, budget=0.02,
            )  # fmt: skip

    def test_percentiles_that_are_not_above_the_low_tier_are_left_out(self) -> None:
        found = choose(quiet(), failures(one=[(40, 9.0)]), low_percentile=99.9)
        assert by_percentile(found, "page_percentile") == [99.95, 99.99]
        assert found.notes[0] == "Left out, not above low_percentile=99.9: page percentile 99.8, 99.9."
        with pytest.raises(ContractError, match=r"expected one above low_percentile=99.99, in params.yaml"):
            choose(quiet(), failures(one=[(40, 9.0)]), low_percentile=99.99)

    def test_one_machine_is_noted(self) -> None:
        assert "There is one machine" in choose(quiet(1), TuneFailureRows.none()).notes[1]


def test_switched_off_the_default_stands_and_its_figures_are_there() -> None:
    found = choose(quiet(), failures(one=[(40, 2.5)]), ChoiceParams(enabled=False))
    assert len(found.table) == 1
    assert (found.page_percentile, found.policy.k, found.policy.n) == (99.95, 3, 5)
    assert found.chosen["caught"] == []
    assert found.notes == ("The choice is switched off: percentile and policy are those of params.yaml.",)


def test_the_choice_is_plain_json_and_keeps_what_params_say_of_the_rest() -> None:
    base = PolicyParams(gap_minutes=45, no_data_hours=12)
    found = choose_policy(
        quiet(), failures(one=[(40, 9.0)]), LEVELS.__getitem__, ChoiceParams(page_percentiles=(99.8, 99.9)), base,
        low_percentile=99.5, page_percentile=99.95, budget=0.02,
    )  # fmt: skip
    assert (found.policy.gap_us, found.policy.no_data_us) == (45 * 60_000_000, 12 * HOUR)
    assert len(found.table) == 2 * 3 * 2
    assert [row["window_minutes"] for row in found.table[:6:2]] == [120, 120, 202]
    told = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert told["table"] == found.table
    assert AlertPolicy.from_json(told["policy"]) == replace(found.policy, notes=())
    assert sum(row["chosen"] for row in told["table"]) == 1
    assert (told["machine_days"], told["allowed_false_page_episodes"], told["failures"]) == (200.0, 4.0, ["one"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k_of_n": [[3, 2]]}, r"got \[3, 2\] in k_of_n, expected k at most n"),
        ({"cool_down_hours": [0, 1, 2, 3]}, "got 120 policies, expected at most 60"),
        ({"page_percentiles": [50]}, "greater than 50"),
        ({"page_percentiles": [100]}, "less than 100"),
        ({"page_percentiles": []}, "at least 1 item"),
        ({"k_of_n": [[0, 2]]}, "greater than or equal to 1"),
        ({"cool_down_hours": [-1]}, "greater than or equal to 0"),
    ],
)
def test_a_grid_that_makes_no_sense_is_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ChoiceParams(**settings)

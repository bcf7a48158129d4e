"""The gate: every rule on real releases, some of them altered; what refuses, what waits, what is promoted."""

from __future__ import annotations

import datetime as dt
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.alerts import AlertPolicy, Episodes, Timeline
from pipeline.errors import ContractError
from pipeline.gate import Check, GateDecision, Verdict, judge_build, judge_later
from pipeline.gate.checks import (
    check_baselines,
    check_failures,
    check_false_pages,
    check_seeds,
    check_time,
    gain_in_catches,
    gain_in_pages,
    gain_of_rates,
    shouts,
)
from pipeline.gate.rows import last_row_us, rows_of_build
from pipeline.gate.sides import Side, _false_pages, sides_of
from pipeline.moments import iso
from pipeline.params import EvaluateParams, GateParams, ValidateParams
from pipeline.release import Release, load_release
from pipeline.schema import MICROSECONDS_PER_DAY, MICROSECONDS_PER_HOUR, Role
from pipeline.store import read_json, read_table, sha256_file, write_json

ONE = GateParams(seeds=1, draws=200, time_rounds=5, time_ratio=50)  # tests share a busy machine
WIDE = EvaluateParams(false_episodes_per_machine_day=0.3, chance_shifts=20)
STRICT = EvaluateParams(chance_shifts=20)
LIMITS = ValidateParams()
Change = Callable[[dict[str, Any], dict[str, Any]], None]  # of calibration.json and of the manifest


def altered(built: Path, out: Path, change: Change) -> Release:
    """The release of a build with other figures in its files."""
    shutil.copytree(built / "data/release", out)
    calibration, manifest = read_json(out / "calibration.json"), read_json(out / "manifest.json")
    change(calibration, manifest)
    write_json(out / "calibration.json", calibration)
    manifest["files"]["calibration.json"] = sha256_file(out / "calibration.json")
    write_json(out / "manifest.json", manifest)
    return load_release(out)


def end_of_calibration_us(built: Path) -> int:
    """The newest row that is no test row: what a build without a test would have seen."""
    boundaries = read_json(built / "metrics/split.json")["boundaries"]
    moment = dt.datetime.fromisoformat(boundaries["calibration_end"])
    return int(moment.timestamp() * 1e6)


def tier(name: str, tiers: dict[str, float]) -> Change:
    """Another page and low threshold of the release's detector."""

    def change(calibration: dict[str, Any], manifest: dict[str, Any]) -> None:
        for key, threshold in tiers.items():
            calibration["detectors"][manifest["detector"]][key]["threshold"] = threshold
        manifest["altered"] = name

    return change


@pytest.fixture(scope="module")
def made(built: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Release]:
    """Releases of one build: as it is, an old one that ends where the test begins, loud ones, a deaf one."""
    folder, start = tmp_path_factory.mktemp("releases"), end_of_calibration_us(built)

    def old(*changes: Change) -> Change:
        def change(calibration: dict[str, Any], manifest: dict[str, Any]) -> None:
            manifest["newest_row_us"] = start
            for each in changes:
                each(calibration, manifest)

        return change

    loud, deaf = {"low": 0.0, "page": 0.0}, {"low": 1e6, "page": 2e6}
    return {
        "new": load_release(built / "data/release"),
        "old": altered(built, folder / "old", old()),
        "loud": altered(built, folder / "loud", tier("loud", loud)),
        "old_loud": altered(built, folder / "old_loud", old(tier("loud", loud))),
        "deaf": altered(built, folder / "deaf", tier("deaf", deaf)),
        "seed": altered(built, folder / "seed", lambda _, manifest: manifest.update(seed=99)),
        "loud_seed": altered(
            built, folder / "loud_seed", lambda c, m: (tier("loud", loud)(c, m), m.update(seed=98))[0]
        ),
    }


@pytest.fixture(scope="module")
def judged(built: Path, made: dict[str, Release]) -> Callable[..., GateDecision]:
    """The decision on champion and challengers by name."""

    def judge(
        champion: str, *challengers: str, params: GateParams = ONE, evaluate: EvaluateParams = WIDE
    ) -> GateDecision:
        where = (built / "data/raw", built / "data/status/split.parquet")
        return judge_build(made[champion], [made[name] for name in challengers], *where, params, evaluate)

    return judge


@pytest.fixture(scope="module")
def sides(built: Path, made: dict[str, Release]) -> dict[str, Side]:
    """All releases on the test rows of the build."""
    names = ["old", "new", "loud", "old_loud", "deaf", "seed", "loud_seed"]
    releases = [made[name] for name in names]
    rows = rows_of_build(releases, built / "data/raw", built / "data/status/split.parquet")
    return dict(zip(names, sides_of(releases, rows, ONE)[0], strict=True))


def by_name(decision: GateDecision) -> dict[str, Check]:
    return {check.name: check for check in (*decision.checks, *decision.gains)}


def test_a_release_never_takes_its_own_place(judged) -> None:
    found = judged("new", "new")
    assert found.verdict == Verdict.REFUSE
    assert not found.accepted
    assert found.gain is None
    assert "in service" in found.reason


def test_without_a_later_row_a_challenger_waits_and_the_needed_days_are_told(judged) -> None:
    found = judged("new", "seed", evaluate=STRICT)
    assert found.verdict == Verdict.WAIT
    assert found.healthy_machine_days == 0
    assert found.needed_machine_days == pytest.approx(115.13, abs=0.01)  # -ln(0.1) / 0.02
    assert found.challenger["false_pages"] is None
    assert found.challenger["null_reasons"]["page_rate"] == "There are no healthy rows."


def test_only_rows_later_than_the_champion_count_as_healthy(judged, made) -> None:
    found = judged("old", "new")
    assert 60 < found.healthy_machine_days < 130
    assert found.asked["first"] > iso(last_row_us(made["old"]))


def test_an_equal_with_rows_enough_is_refused_because_it_gains_nothing(judged) -> None:
    params = ONE.model_copy(update={"behind_baselines": 3})
    found = judged("old", "new", params=params)
    assert (found.verdict, found.gain) == (Verdict.REFUSE, None)
    assert "gains nothing" in found.reason
    assert {check.name for check in found.checks if check.passed is False} == set()


def test_a_challenger_that_shouts_is_refused_at_once(judged) -> None:
    found = judged("old", "loud")
    assert found.verdict == Verdict.REFUSE
    assert by_name(found)["false_pages"].passed is False
    assert "even its lower" in found.reason


def test_a_quiet_challenger_takes_the_place_of_a_champion_that_shouts(judged) -> None:
    params = ONE.model_copy(update={"behind_baselines": 3, "lost_failures": 2})  # a champion that kept the budget: 2
    found = judged("old_loud", "new", params=params)
    assert found.accepted, found.reason
    assert found.gain is not None
    assert by_name(found)["champion_rate"].passed
    assert any("not held against" in note for note in found.notes)
    # and not without rows to show it
    assert judged("old_loud", "new", params=params, evaluate=STRICT).verdict == Verdict.WAIT


def test_the_catches_of_a_champion_that_shouts_count_as_if_it_kept_the_budget(sides) -> None:
    champion, challenger = sides["old_loud"], sides["new"]
    assert shouts(champion, ONE)
    assert not shouts(sides["old"], ONE)
    found = check_failures(champion, challenger, ONE, WIDE)
    assert "shouts" in found.words
    assert champion.quiet(champion.release.detector, 5.0).false <= 5
    unmoved = ONE.model_copy(update={"shouts": 1e9})
    assert "shouts" not in check_failures(champion, challenger, unmoved, WIDE).words


def with_catches(side: Side, caught: set[str], judging: set[str], tuning: set[str] | None = None) -> Side:
    outcome = replace(side.pages.outcome, caught=dict.fromkeys(caught, (0, 1.0)))
    rows = replace(side.rows, judging=frozenset(judging), tuning=frozenset(tuning or ()))
    return replace(side, pages=replace(side.pages, outcome=outcome), rows=rows)


@pytest.mark.parametrize(("lost", "passed"), [(0, True), (1, True), (2, False)])
def test_at_most_one_failure_may_be_lost(sides, lost: int, passed: bool) -> None:
    names = {f"f{number}" for number in range(6)}
    held = {f"f{number}" for number in range(lost, 5)} | {"f5"}  # one more does not make up for one lost
    champion = with_catches(sides["old"], {f"f{number}" for number in range(5)}, names)
    found = check_failures(champion, with_catches(sides["new"], held, names), ONE, WIDE)
    assert (found.passed, found.champion, found.challenger) == (passed, 5.0, 6.0 - lost)


def test_without_failures_nothing_is_lost_and_nothing_shown(sides) -> None:
    champion, challenger = (with_catches(sides[name], set(), set()) for name in ("old", "new"))
    for found in (check_failures(champion, challenger, ONE, WIDE), check_baselines(challenger, ONE, WIDE)):
        assert found.passed is None
        assert not found.waits  # rows alone cannot tell it


def test_more_catches_need_the_interval_and_the_exact_test(sides) -> None:
    names = {f"f{number:02}" for number in range(20)}

    def gain(only_new: int, only_old: int, tuned: int = 20) -> Check:
        ordered = sorted(names)[:tuned]
        old = set(ordered[:only_old])
        new = set(ordered[only_old : only_old + only_new])
        champion, challenger = (
            with_catches(sides[name], caught, set(), set(ordered)) for name, caught in (("old", old), ("new", new))
        )
        return gain_in_catches(champion, challenger, GateParams())

    assert gain(6, 0).passed
    assert gain(3, 0).passed is False  # the interval alone would say yes
    assert gain(4, 4).passed is False
    assert gain(0, 6).passed is False
    assert gain(6, 0, tuned=9).passed is None


def test_a_gain_in_false_pages_needs_more_than_one_machine(sides) -> None:
    assert gain_in_pages(sides["old_loud"], sides["new"], ONE).passed
    assert gain_in_pages(sides["old"], sides["new"], ONE).passed is False
    assert gain_in_pages(sides["new"], sides["loud"], ONE).passed is False
    pages = sides["new"].pages
    alone_B = np.where(pages.machine_B == pages.machine_B[0], 1.0, 0.0)
    champion = replace(sides["old"], pages=replace(pages, confirmed_false_B=alone_B))
    assert gain_in_pages(champion, sides["new"], ONE).passed is False  # it is drawn or it is not


def test_unconfirmed_rows_give_no_gain(sides) -> None:
    pages = sides["new"].pages
    none_B = np.zeros(len(pages.days_B))
    young = replace(sides["new"], pages=replace(pages, confirmed_days_B=none_B, confirmed_false_B=none_B))
    found = gain_in_pages(sides["old_loud"], young, ONE)
    assert (found.passed, found.waits) == (None, True)


def test_a_champion_that_has_left_its_rate_is_a_reason(sides) -> None:
    assert gain_of_rates(sides["old_loud"]).passed
    assert gain_of_rates(sides["old"]).passed is False
    assert gain_of_rates(replace(sides["old"], rate=None)).waits


def test_false_pages_wait_until_the_bound_can_be_told(sides) -> None:
    champion, challenger = sides["old"], sides["new"]
    assert check_false_pages(champion, challenger, ONE, WIDE).passed
    few = check_false_pages(champion, challenger, ONE, EvaluateParams(false_episodes_per_machine_day=0.001))
    assert (few.passed, few.waits) == (None, True)
    low, upper = sides["loud"].pages.bounds(0.9)
    assert 0 < low < sides["loud"].pages.false < upper


def test_a_simple_detector_that_breaks_the_budget_is_made_to_keep_it(sides) -> None:
    side = sides["new"]
    for name in ("pca", "energy_zscore", "squared_distance"):
        assert side.quiet(name, 0.0).false == 0
        assert side.quiet(name, 1e9).false == side.pages_of(name).false


def test_a_challenger_below_a_simple_detector_does_not_pass(sides) -> None:
    side = sides["deaf"]
    caught = {event.failure_id for event in side.rows.events}
    deaf = replace(side, rows=replace(side.rows, judging=frozenset(caught)))
    found = check_baselines(deaf, ONE, WIDE)
    assert found.challenger == 0
    assert found.limit is not None
    assert found.limit > 0
    assert found.passed is False
    assert check_baselines(deaf, ONE.model_copy(update={"behind_baselines": 99}), WIDE).passed


def test_every_seed_must_pass(sides, judged) -> None:
    two = GateParams(seeds=2, behind_baselines=3, draws=200, time_ratio=50)
    challengers = [sides["new"], sides["seed"]]
    assert check_seeds(sides["old"], challengers, two, WIDE).passed
    assert check_seeds(sides["old"], challengers[:1], two, WIDE).passed is False
    assert check_seeds(sides["old"], [sides["new"], sides["new"]], two, WIDE).passed is False  # the same seed twice
    loud = check_seeds(sides["old"], [sides["new"], sides["loud_seed"]], two, WIDE)
    assert (loud.passed, loud.waits) == (False, False)
    assert "Seed 98" in loud.words
    young = check_seeds(sides["old"], challengers, two, EvaluateParams(false_episodes_per_machine_day=0.001))
    assert (young.passed, young.waits) == (None, True)
    assert judged("old_loud", "new", params=two).verdict == Verdict.REFUSE  # one seed of two


def test_time_per_row_may_grow_by_half(judged) -> None:
    params, same_T2 = GateParams(), np.full((7, 2), 1e-6)
    assert check_time(same_T2 * [1, 1.49], 5000, params).passed
    assert check_time(same_T2 * [1, 1.6], 5000, params).passed is False
    few = check_time(None, 10, params)
    assert (few.passed, few.waits) == (None, True)
    disturbed_T2 = same_T2.copy()
    disturbed_T2[:3, 1] *= 9  # less than half of the rounds
    assert check_time(disturbed_T2, 5000, params).passed
    disturbed_T2[3:5, 1] *= 9  # most of them, but not all
    busy = check_time(disturbed_T2, 5000, params)
    assert (busy.passed, busy.waits) == (None, True)
    found = judged("old", "seed", params=ONE.model_copy(update={"time_rows": 10**6}))
    assert found.champion["seconds_per_million_rows"] is None
    assert "1,000,000" in found.champion["null_reasons"]["seconds_per_million_rows"]


def test_the_record_is_plain_json(judged) -> None:
    found = judged("old_loud", "new")
    told = found.to_dict()
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    assert set(found.caught) == {"both", "champion", "challenger", "neither", "failures"}


def test_another_split_than_the_challengers_own_is_refused(built, made, tmp_path) -> None:
    other = shutil.copyfile(built / "data/status/clean.parquet", tmp_path / "split.parquet")
    with pytest.raises(ContractError, match="the split that made challenger"):
        judge_build(made["old"], [made["new"]], built / "data/raw", Path(other), ONE, WIDE)
    with pytest.raises(ContractError, match="challengers: got none"):
        judge_build(made["old"], [], built / "data/raw", built / "data/status/split.parquet", ONE, WIDE)


def test_failures_are_sorted_by_who_was_tuned_on_them(built, made) -> None:
    where = (built / "data/raw", built / "data/status/split.parquet")
    failures = {row["failure_id"]: row for row in read_table(where[0] / "failures.parquet").to_pylist()}
    rows = rows_of_build([made["new"], made["seed"]], *where)
    assert rows.judging
    assert rows.tuning
    assert {failures[name]["role"] for name in rows.judging} == {str(Role.TEST)}
    assert {failures[name]["role"] for name in rows.tuning} == {str(Role.TUNE)}
    # a tune failure after the champion's last row tuned the challenger alone: it is fair to nobody
    old = rows_of_build([made["old"], made["new"]], *where)
    late = {name for name, row in failures.items() if row["time"].timestamp() * 1e6 > last_row_us(made["old"])}
    assert old.judging == rows.judging
    assert old.tuning == rows.tuning - late


def test_failures_before_a_change_tuned_the_release_after_it(built, made, tmp_path) -> None:
    where = (built / "data/raw", built / "data/status/split.parquet")
    at = iso(last_row_us(made["old"]))
    changed = altered(built, tmp_path / "r", lambda _, manifest: manifest["params"]["split"].update(changed_at=at))
    as_before = rows_of_build([made["old"], made["new"]], *where)
    rows = rows_of_build([made["old"], changed], *where)
    assert (rows.judging, rows.tuning) == (as_before.judging, as_before.tuning)


def test_shadow_rows_are_later_than_both_and_labelled_by_their_own_log(built, made) -> None:
    found = judge_later(made["old"], [made["old"]], built / "data/raw", None, ONE, WIDE, LIMITS)
    assert found.asked["first"] > iso(last_row_us(made["old"]))
    assert 60 < found.healthy_machine_days < 130
    since = dt.datetime.fromisoformat(found.asked["first"]) + dt.timedelta(days=4)
    later = judge_later(made["old"], [made["old"]], built / "data/raw", since, ONE, WIDE, LIMITS)
    assert later.asked["first"] >= iso(int(since.timestamp() * 1e6))
    assert later.healthy_machine_days < found.healthy_machine_days
    none = judge_later(made["new"], [made["seed"]], built / "data/raw", None, ONE, WIDE, LIMITS)
    assert (none.verdict, none.healthy_machine_days) == (Verdict.WAIT, 0)


def test_shadow_rows_are_held_against_the_limits_of_the_plant(built, made, tmp_path) -> None:
    shutil.copytree(built / "data/raw", tmp_path / "raw")  # no status table stands beside it
    strict = ValidateParams(max_energy=1e-12)
    with pytest.raises(ContractError, match=r"quarantined rows: got \d+ of \d+ rows \(energy"):
        judge_later(made["old"], [made["old"]], tmp_path / "raw", None, ONE, WIDE, strict)


def test_shadow_rows_and_test_rows_of_one_span_say_the_same(judged, built, made) -> None:
    shadow = judge_later(made["old"], [made["old_loud"]], built / "data/raw", None, ONE, WIDE, LIMITS)
    test = judged("old", "loud")
    split = read_json(built / "metrics/split.json")["boundaries"]
    gap = dt.datetime.fromisoformat(split["test_start"]) - dt.datetime.fromisoformat(split["calibration_end"])
    days = gap / dt.timedelta(days=1) * 10  # the shadow judges the gap before the test, too
    assert shadow.healthy_machine_days == pytest.approx(test.healthy_machine_days + days, abs=days / 2)
    assert by_name(shadow)["false_pages"].passed is by_name(test)["false_pages"].passed is False


def test_a_recalibration_of_the_champion_needs_no_other_seed(built, made, tmp_path) -> None:
    champion, anew = made["new"], made["new"].id

    def recalibrated(_: dict[str, Any], manifest: dict[str, Any]) -> None:
        manifest |= {"recalibrated_from": anew, "recalibration": {"last": "2030-01-01T00:00:00Z"}}

    release = altered(built, tmp_path / "anew", recalibrated)
    assert iso(last_row_us(release)) == "2030-01-01T00:00:01Z"
    side = Side(release, *(None,) * 5)  # type: ignore[arg-type]
    found = check_seeds(Side(champion, *(None,) * 5), [side], GateParams(), WIDE)  # type: ignore[arg-type]
    assert found.passed


def test_a_page_that_stood_before_counts_by_the_days_that_it_goes_on() -> None:
    hour, day = MICROSECONDS_PER_HOUR, MICROSECONDS_PER_DAY
    time_us = np.arange(0, 5 * 24) * hour
    line = Timeline.of(np.zeros(len(time_us), np.int32), time_us, AlertPolicy(1, 1, hour, 2 * hour))
    episodes = Episodes(np.array([0, 60, 100]), np.array([55, 61, 101]), line)
    first, weight = _false_pages(episodes, ["false", "false", "caught"], after_us=day)
    assert first.tolist() == [25, 60]  # the first row after the moment stands for the page that stood
    assert weight.tolist() == [1, 1]
    first, weight = _false_pages(episodes, ["false", "false", "false"], after_us=3 * day)
    assert (first.tolist(), weight.tolist()) == ([100], [1])


def test_pages_in_horizons_are_not_false(sides) -> None:
    side = sides["loud"]
    windows = [(event.machine, event.start_us, event.end_us) for event in side.rows.events]
    assert windows
    inside = np.zeros(len(side.rows), bool)
    for machine, start, end in windows:
        own = side.rows.rows
        inside |= (own.machine == machine) & (own.time_us >= start) & (own.time_us <= end)
    assert not (inside & side.rows.healthy_S).any()

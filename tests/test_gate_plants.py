"""The gate on releases that the stages built: a contaminated challenger is refused, a change of firmware is settled."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from gate_plant import LEARNING, READING, build, contaminate, params_of, until, whole_life

from pipeline.gate import GateDecision, Verdict, judge_build, judge_later
from pipeline.params import EvaluateParams, GateParams, ValidateParams
from pipeline.release import load_release

BUDGET = EvaluateParams(false_episodes_per_machine_day=0.1, chance_shifts=50)
GATE = GateParams(time_rounds=5, time_ratio=50)  # tests share a busy machine
LIMITS = ValidateParams()
SEEDS = (5, 6)


@pytest.fixture(scope="module")
def champion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build of the first 30 days, and the whole life of its plant beside it."""
    folder = tmp_path_factory.mktemp("plant")
    whole_life(folder / "life", params_of())
    (folder / "champion").mkdir()
    until(folder / "life/all", folder / "champion/landing", 30)
    return build(folder / "champion", params_of())


def later(folder: Path, params: str, life: Path) -> Path:
    """Everything that happened, as `hearken ingest` leaves it."""
    folder.mkdir()
    until(life, folder / "landing", 60)
    return build(folder, params, ("ingest", "validate")) / "data/raw"


def words(decision: GateDecision, name: str) -> str:
    return next(check.words for check in decision.checks if check.name == name)


def test_a_challenger_trained_on_contaminated_rows_is_refused(champion: Path, tmp_path: Path) -> None:
    rows = later(tmp_path / "later", params_of(), champion.parent / "life/all")
    challengers = []
    for seed in SEEDS:  # the same rows as the champion, those before failures among the healthy ones
        folder = tmp_path / f"contaminated-{seed}"
        shutil.copytree(champion, folder)
        build(folder, params_of(seed), READING[2:])
        assert contaminate(folder) > 300
        challengers.append(load_release(build(folder, params_of(seed), LEARNING) / "data/release"))
    release = load_release(champion / "data/release")
    found = judge_later(release, challengers, rows, None, GATE, BUDGET, LIMITS)
    assert found.verdict == Verdict.REFUSE
    assert found.champion["caught"] > found.challenger["caught"] + 1
    assert len(found.caught["champion"]) > 1
    assert words(found, "failures") in found.reason
    # quiet it is: what looks like a gain is deafness
    assert found.challenger["false_pages"] <= found.champion["false_pages"]
    # the champion's own rows judge nothing, and it gains nothing over itself
    again = judge_later(release, [release], rows, None, GATE, BUDGET, LIMITS)
    assert (again.verdict, again.gain) == (Verdict.REFUSE, None)


@pytest.mark.slow
def test_a_challenger_built_after_a_change_of_firmware_waits_and_is_promoted(champion: Path, tmp_path: Path) -> None:
    life = whole_life(tmp_path / "life", params_of(firmware=30.5))
    challengers = []
    for seed in SEEDS:
        folder = tmp_path / f"challenger-{seed}"
        folder.mkdir()
        until(life, folder / "landing", 44)
        build(folder, params_of(seed, firmware=30.5, changed=30.5))
        challengers.append(load_release(folder / "data/release"))
    release, own = load_release(champion / "data/release"), tmp_path / "challenger-5/data"
    first = judge_build(release, challengers, own / "raw", own / "status/split.parquet", GATE, BUDGET)
    assert first.verdict == Verdict.WAIT
    assert first.healthy_machine_days < first.needed_machine_days
    rates = {check.name: check for check in first.gains}["champion_rate"]
    assert rates.passed  # the champion shouts since the change
    rows = later(tmp_path / "later", params_of(firmware=30.5), life)
    budget = BUDGET.model_copy(update={"false_episodes_per_machine_day": 0.25})
    tolerant = GATE.model_copy(update={"behind_baselines": 1})
    found = judge_later(release, challengers, rows, None, tolerant, budget, LIMITS)
    assert found.accepted, found.reason
    assert found.gain is not None
    assert found.challenger["false_pages"] < found.champion["false_pages"] / 3
    # at a budget that its false pages do not keep it goes on waiting, or is refused; in no case promoted
    strict = budget.model_copy(update={"false_episodes_per_machine_day": 0.02})
    assert not judge_later(release, challengers, rows, None, tolerant, strict, LIMITS).accepted

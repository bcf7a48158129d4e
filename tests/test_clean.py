"""The stage finds planted faults, spares the healthy, stops at its cap, asks its gate, and lets people correct it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from cleaning_fleet import BINS, HOURS, NAMES, ROLES, Fleet

from pipeline.clean import clean, main
from pipeline.cleaning.episodes import sampled_episodes, select
from pipeline.cleaning.figures import removed_csv
from pipeline.errors import ContractError
from pipeline.params import BaselineParams, CleanParams
from pipeline.schema import CLEAN_SCHEMA, FleetSpec, Role, times_us
from pipeline.store import read_json, read_table, write_table, write_text

SPEC = FleetSpec(bins=BINS)
HEADER = "machine_id,start,end,action,note\n"


def cleaned(fleet: Fleet, folder: Path, **params):
    condition = params.pop("condition", True)
    split = fleet.write(folder, condition=condition)
    return clean(folder, split, SPEC, CleanParams(**params), 0, BaselineParams())


def removed_hours(fleet: Fleet, found) -> np.ndarray:
    return fleet.grid(found.table["removed"]).astype(bool)


@pytest.fixture
def faulty() -> Fleet:
    """A line in one band of one machine for two days, and another machine that grows quieter for two days."""
    fleet = Fleet()
    fleet.spectra[2, 240:288, 5] *= 2.0
    fleet.spectra[7, 360:408] *= 0.5
    return fleet


AUTOENCODER = {"model": "autoencoder", "components": 2, "max_rounds": 1}


@pytest.mark.parametrize("settings", [{}, {"condition": False}, {"method": "trimmed"}, AUTOENCODER])
def test_planted_faults_are_removed_and_the_healthy_stay(faulty: Fleet, tmp_path: Path, settings) -> None:
    found = cleaned(faulty, tmp_path, **settings)
    removed = removed_hours(faulty, found)
    planted = np.zeros_like(removed)
    planted[2, 240:288] = planted[7, 360:408] = True
    assert removed[planted].mean() > 0.9
    assert removed[~planted].mean() < (0.02 if settings.get("method") == "trimmed" else 0.01)
    assert found.metrics["removed"] == removed.sum()
    assert found.metrics["regimes"] == ("levels of the spectrum" if settings == {"condition": False} else "condition")


@pytest.mark.parametrize("seed", range(3))
def test_a_healthy_fleet_loses_next_to_nothing(tmp_path: Path, seed: int) -> None:
    found = cleaned(Fleet(seed), tmp_path)
    assert found.metrics["share"] <= 0.01
    assert found.metrics["contaminated_share_estimate"] <= 0.01


def test_only_train_and_validation_rows_are_looked_at(faulty: Fleet, tmp_path: Path) -> None:
    faulty.role_MH[2, 240:288] = ROLES.index(Role.CALIBRATION)
    faulty.role_MH[7] = ROLES.index(Role.TEST)
    faulty.role_MH[1, 100:200] = ROLES.index(Role.VALIDATION)
    found = cleaned(faulty, tmp_path)
    assert found.table.schema.equals(CLEAN_SCHEMA)
    evidence = faulty.grid(found.table["evidence"])
    assert all(value is None for value in [*evidence[2, 240:288], *evidence[7]])
    assert any(value is not None for value in evidence[1, 100:200])
    assert not removed_hours(faulty, found)[2, 240:288].any()
    assert not removed_hours(faulty, found)[7].any()


def test_method_none_removes_nothing(faulty: Fleet, tmp_path: Path) -> None:
    found = cleaned(faulty, tmp_path, method="none")
    assert found.metrics["removed"] == 0
    assert found.table["evidence"].null_count == found.table.num_rows


def test_more_contamination_than_the_cap_stops_the_stage(faulty: Fleet, tmp_path: Path) -> None:
    with pytest.raises(ContractError, match=r"\d\.\d% of 5,760 .*max_removed_share = 0\.5%.*clean\.method: none"):
        cleaned(faulty, tmp_path, max_removed_share=0.005)


def test_no_training_rows(tmp_path: Path) -> None:
    fleet = Fleet()
    fleet.role_MH[:] = ROLES.index(Role.TEST)
    with pytest.raises(ContractError, match="train rows: got none"):
        cleaned(fleet, tmp_path)


def test_a_machine_ill_from_its_first_row_to_its_last_is_named_and_kept(tmp_path: Path) -> None:
    fleet = Fleet()
    fleet.spectra /= np.median(fleet.spectra, axis=1, keepdims=True) / 1.0  # one make of machine
    fleet.spectra[6, :, 3:5] *= 8.0
    found = cleaned(fleet, tmp_path)
    assert not removed_hours(fleet, found)[6].any()
    assert [text.split(":")[0] for text in found.metrics["warnings"]] == ["m6"]


def test_corrections_come_last(faulty: Fleet, tmp_path: Path) -> None:
    kept = "m2,1970-01-11T00:00:00Z,1970-01-12T23:00:00Z,keep,new tool\n"
    gone = "m0,1970-01-03T00:00:00Z,1970-01-03T05:00:00+00:00,remove,\n"
    write_text(tmp_path / "corrections.csv", HEADER + kept + gone)
    found = cleaned(faulty, tmp_path)
    removed, reason = removed_hours(faulty, found), faulty.grid(found.table["reason"])
    assert not removed[2, 240:288].any()
    assert removed[0, 48:54].all()
    assert set(reason[0, 48:54]) == {"correction"}
    assert set(reason[7, 366:402]) == {"residual"}
    assert found.metrics["by_reason"]["correction"] == 6
    lines = removed_csv(found.intervals).splitlines()
    assert any(line.startswith("m2,") and line.endswith("residual,kept") for line in lines)


def test_the_list_of_removed_intervals_can_be_given_back_as_corrections(faulty: Fleet, tmp_path: Path) -> None:
    first = cleaned(faulty, tmp_path)
    write_text(tmp_path / "corrections.csv", removed_csv(first.intervals).replace(",remove,", ",keep,"))
    assert cleaned(faulty, tmp_path).metrics["removed"] == 0


def test_limits_learned_from_a_few_days_find_the_same_faults(
    faulty: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = removed_hours(faulty, cleaned(faulty, tmp_path))
    monkeypatch.setattr("pipeline.cleaning.episodes.FIT_ROWS", 1000)
    sampled = removed_hours(faulty, cleaned(faulty, tmp_path))
    assert whole.sum() > 80
    assert (whole != sampled).sum() < 0.1 * whole.sum()


def test_a_sample_takes_whole_episodes_of_every_machine_from_half_of_the_days(tmp_path: Path) -> None:
    split = Fleet().write(tmp_path)
    rows = select(split, np.ones(split.num_rows, bool), times_us(split["timestamp"]), 6.0)
    chosen = sampled_episodes(rows, 600, seed=0)
    assert 500 < chosen.sum() < 700
    assert set(np.bincount(rows.episode_N[chosen])) == {0, 6}
    assert set(rows.machine_N[chosen]) == set(range(len(NAMES)))
    assert len(set(rows.file_N[chosen])) <= 12 < len(rows.files)
    assert sampled_episodes(rows, len(rows), seed=0).all()


def test_a_correction_of_an_unknown_machine_names_its_line(tmp_path: Path) -> None:
    write_text(
        tmp_path / "corrections.csv", HEADER + "m1,1970-01-02,1970-01-03,keep,\nm99,1970-01-02,1970-01-03,keep,\n"
    )
    with pytest.raises(ContractError, match=r"machine_id: got 'm99'.*corrections\.csv, line 3"):
        cleaned(Fleet(), tmp_path)


def test_a_whole_machine_that_a_person_removes_is_warned_of(tmp_path: Path) -> None:
    write_text(tmp_path / "corrections.csv", HEADER + "m3,1970-01-01,1971-01-01,remove,never well\n")
    fleet = Fleet()
    found = cleaned(fleet, tmp_path)
    assert removed_hours(fleet, found)[3].all()
    assert any(text.startswith("m3: all of its") for text in found.metrics["warnings"])


def test_the_gate_keeps_the_raw_rows_where_cleaning_does_harm(tmp_path: Path) -> None:
    """What is rare in training is what healthy machines do later: without it they look faulty."""
    fleet = Fleet()
    later = slice(16 * 24, HOURS)
    fleet.role_MH[:, later] = ROLES.index(Role.CALIBRATION)
    fleet.role_MH[:2, later], fleet.failure_MH[0, later], fleet.failure_MH[1, later] = ROLES.index(Role.TUNE), 0, 1
    fleet.spectra[:2, later, 2] *= 2.0
    rare = fleet.spectra.copy()
    rare[..., 8:] *= 3.0
    fleet.spectra[2:, later] = rare[2:, later]
    for machine in range(2, len(NAMES)):
        fleet.spectra[machine, 24 * machine : 24 * machine + 24] = rare[machine, 24 * machine : 24 * machine + 24]
    found = cleaned(fleet, tmp_path, max_removed_share=0.3)
    gate = found.metrics["gate"]
    assert gate["figure"] == "auroc"
    assert gate["raw"] > gate["cleaned"]
    assert not gate["cleaning_kept"]
    assert found.metrics["removed"] == 0
    assert {each.removed for each in found.intervals} == {False}


def test_hostile_names_reach_no_path_and_no_formula(faulty: Fleet, tmp_path: Path) -> None:
    names = [*NAMES[:2], '=cmd|"/../../x",', *NAMES[3:]]
    split = faulty.write(tmp_path, names=names)
    found = clean(tmp_path, split, SPEC, CleanParams(), 0, BaselineParams())
    text = removed_csv(found.intervals)
    assert '"\'=cmd|""/../../x"","' in text
    assert found.worst[0]["machine"] in names


def test_the_same_seed_gives_the_same_answer(faulty: Fleet, tmp_path: Path) -> None:
    first, second = (cleaned(faulty, tmp_path) for _ in range(2))
    assert first.table.equals(second.table)
    assert json.dumps(first.metrics) == json.dumps(second.metrics)


def test_the_stage_writes_its_outputs(faulty: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = faulty.write(tmp_path / "data/raw")
    write_table(tmp_path / "data/status/split.parquet", split)
    write_text(tmp_path / "params.yaml", "seed: 1\n")
    monkeypatch.chdir(tmp_path)
    main()
    assert read_table("data/status/clean.parquet", schema=CLEAN_SCHEMA).num_rows == split.num_rows
    worst = read_json("data/cleaning/worst.json")
    assert {part["machine"] for part in worst[:2]} == {"m2", "m7"}
    assert (
        len(worst[0]["bands"])
        == BINS
        == len(worst[0]["removed"]["spectra"][0])
        == len(worst[0]["normal"]["spectra"][0])
    )
    days = {time[:10] for time in worst[0]["normal"]["times"]}
    assert 6 <= len(days) <= 12  # of 24: what is drawn is read from few files
    assert (
        Path("data/cleaning/removed.csv").read_text().count("\n")
        == len(read_json("metrics/cleaning.json")["worst_episodes"]) + 1
    )

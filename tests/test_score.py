"""A release at work: the same bits as in evaluation, refused when it is not what it says, and safe with bad rows."""

import datetime as dt
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import ContractError, ReleaseError
from pipeline.release import Release, load_release, release_id
from pipeline.schema import BASELINE_NAMES, Baseline
from pipeline.score import score_data_set
from pipeline.store import day_files, read_table, write_table


@pytest.fixture(scope="module")
def release(built: Path) -> Release:
    return load_release(built / "data/release", release_id(built / "data/release"))


@pytest.fixture(scope="module")
def log(built: Path, release: Release, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("log")
    summary = score_data_set(release, built / "data/raw", out)
    assert summary.rows == pq.read_table(built / "data/status/split.parquet").num_rows
    return out


def test_service_and_evaluation_give_the_same_bits(built: Path, release: Release, log: Path) -> None:
    evaluated = read_table(built / "data/evaluation/scores.parquet").to_pandas()
    scored = pa.concat_tables([read_table(path) for path in sorted(log.glob("*.parquet"))]).to_pandas()
    scored["file"] = scored["file"].astype(str)
    evaluated["file"] = evaluated["file"].astype(str)
    both = evaluated.merge(scored, on=["file", "row"], suffixes=("_evaluated", "_service"))
    assert len(both) == len(evaluated) > 100
    np.testing.assert_array_equal(both["epoch_evaluated"], both["epoch_service"])
    baseline = both["baseline_service"].map(BASELINE_NAMES.index).to_numpy(dtype=int)
    assert {Baseline.SHRUNK, Baseline.OWN} <= set(baseline), "both kinds of baseline are needed here"
    for name in release.tails.names:
        comparable = both[f"score_{name}_evaluated"].to_numpy()
        np.testing.assert_array_equal(both[f"tail_{name}"], release.tails.table(name).probability(comparable))
    np.testing.assert_array_equal(both["score_ensemble_evaluated"], both["score_ensemble_service"])


def test_the_score_log_holds_every_row_once_with_tails_and_top_bins(release: Release, log: Path) -> None:
    table = pa.concat_tables([read_table(path) for path in sorted(log.glob("*.parquet"))]).to_pandas()
    assert not table.duplicated(["file", "row"]).any()
    tails = table[[f"tail_{name}" for name in (*release.manifest["members"], "ensemble")]].dropna()
    assert (tails > 0).all(axis=None)
    assert (tails <= 1).all(axis=None)
    flagged = table["tier"].isin(["low", "page"])
    assert flagged.any()
    assert table.loc[flagged, "top_bins"].map(len).eq(5).all()
    assert table.loc[~flagged, "top_bins"].isna().all()
    assert set(table["release"]) == {release.id}


def test_scoring_again_writes_the_same_bytes(built: Path, release: Release, log: Path, tmp_path: Path) -> None:
    score_data_set(release, built / "data/raw", tmp_path)
    for path in log.glob("*.parquet"):
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


def test_a_span_scores_only_its_rows(built: Path, release: Release, tmp_path: Path) -> None:
    day = dt.datetime.fromisoformat(day_files(built / "data/raw")[3].stem).replace(tzinfo=dt.UTC)
    summary = score_data_set(
        release, built / "data/raw", tmp_path, day + dt.timedelta(hours=6), day + dt.timedelta(hours=12)
    )
    assert [path.stem for path in tmp_path.glob("*.parquet")] == [f"{day:%Y-%m-%d}"]
    assert summary.first is not None
    assert summary.first >= day + dt.timedelta(hours=6)
    assert summary.last is not None
    assert summary.last < day + dt.timedelta(hours=12)


def test_rows_that_cannot_be_scored_stay_in_the_log_without_a_score(
    built: Path, release: Release, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    (data / "spectra").mkdir(parents=True)
    shutil.copy(built / "data/raw/fleet.yaml", data)
    table = read_table(day_files(built / "data/raw")[0])
    spectra = table["spectrum"].combine_chunks().flatten().to_numpy().reshape(-1, 32).copy()
    spectra[2, 5], spectra[4, 0] = np.nan, -1
    column = pa.FixedSizeListArray.from_arrays(pa.array(spectra.reshape(-1)), 32)
    index = table.column_names.index("spectrum")
    write_table(data / "spectra/2030-01-01.parquet", table.set_column(index, table.schema.field("spectrum"), column))
    summary = score_data_set(release, data, tmp_path / "out")
    assert summary.unscored == 2
    found = read_table(tmp_path / "out/2030-01-01.parquet").to_pandas()
    assert found["score_pca"].isna().to_numpy().nonzero()[0].tolist() == [2, 4]
    whole = score_data_set(release, built / "data/raw", tmp_path / "whole")
    assert whole.unscored == 0
    clean = read_table(sorted((tmp_path / "whole").glob("*.parquet"))[0]).to_pandas()
    others = np.setdiff1d(np.arange(len(found)), [2, 4])
    np.testing.assert_array_equal(found["score_pca"].to_numpy()[others], clean["score_pca"].to_numpy()[others])


def test_a_machine_that_the_release_never_saw_gets_the_fleets_baseline(
    built: Path, release: Release, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    (data / "spectra").mkdir(parents=True)
    shutil.copy(built / "data/raw/fleet.yaml", data)
    table = read_table(day_files(built / "data/raw")[0]).slice(0, 20)
    names = pa.array(['../<b>"new"'] * 20).dictionary_encode().cast(table.schema.field("machine_id").type)
    write_table(data / "spectra/2030-01-01.parquet", table.set_column(0, table.schema.field("machine_id"), names))
    score_data_set(release, data, tmp_path / "out")
    found = read_table(tmp_path / "out/2030-01-01.parquet").to_pandas()
    assert set(found["baseline"]) == {"fleet"}
    assert found["score_autoencoder"].notna().all()
    assert [path.name for path in tmp_path.iterdir() if path.name not in ("data", "out")] == []


@pytest.mark.parametrize("lost", ["no column", "other names"])
def test_rows_whose_condition_is_not_known_get_the_fleets_baseline(
    built: Path, release: Release, tmp_path: Path, lost: str
) -> None:
    """A gateway stops telling the regime, or tells it in another language."""
    data = tmp_path / "data"
    (data / "spectra").mkdir(parents=True)
    shutil.copy(built / "data/raw/fleet.yaml", data)
    day = day_files(built / "data/raw")[10]
    table = read_table(day)
    index = table.column_names.index("condition")
    assert len(set(table["condition"].to_pylist())) > 1
    without = table.remove_column(index)
    told = without if lost == "no column" else without.append_column("condition", pa.array(["Leerlauf"] * len(table)))
    write_table(data / "spectra" / day.name, told)
    score_data_set(release, data, tmp_path / "out")
    found = read_table(tmp_path / "out" / day.name)
    assert set(found["baseline"].to_pylist()) == {"fleet"}
    write_table(data / "spectra" / day.name, table)
    score_data_set(release, data, tmp_path / "known")
    assert "own" in read_table(tmp_path / "known" / day.name)["baseline"].to_pylist()


@pytest.mark.parametrize("victim", ["detectors/pca/weights.safetensors", "calibration.json", "tails/vae.safetensors"])
def test_a_release_that_was_touched_is_refused(built: Path, tmp_path: Path, victim: str) -> None:
    copy = tmp_path / "release"
    shutil.copytree(built / "data/release", copy)
    expected = release_id(copy)
    path = copy / victim
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(ReleaseError, match="expected"):
        load_release(copy, expected)
    with pytest.raises(ReleaseError, match="other bytes than its manifest says"):
        load_release(copy)


def test_another_number_of_bins_is_refused(built: Path, release: Release, tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "spectra").mkdir(parents=True)
    (data / "fleet.yaml").write_text("bins: 8\n")
    with pytest.raises(ContractError, match="got 8, expected 32"):
        score_data_set(release, data, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_same_stage_gives_the_same_release(built: Path, tmp_path: Path) -> None:
    from pipeline.params import load_params
    from pipeline.release import build_release

    build_release(built, load_params(built / "params.yaml"), tmp_path)
    assert release_id(tmp_path) == release_id(built / "data/release")
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["models"].keys() == set(manifest["members"])


def test_scoring_a_part_of_a_day_again_keeps_the_rest_of_its_log(built: Path, release: Release, tmp_path: Path) -> None:
    day = dt.datetime.fromisoformat(day_files(built / "data/raw")[3].stem).replace(tzinfo=dt.UTC)
    path = tmp_path / f"{day:%Y-%m-%d}.parquet"
    end = day + dt.timedelta(days=1)
    score_data_set(release, built / "data/raw", tmp_path, day, end)
    before = read_table(path).to_pandas()
    score_data_set(release, built / "data/raw", tmp_path, day + dt.timedelta(hours=18), end)
    after = read_table(path).to_pandas()
    assert after["row"].tolist() == before["row"].tolist()
    np.testing.assert_array_equal(after["score_vae"], before["score_vae"])

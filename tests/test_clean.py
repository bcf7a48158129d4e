"""The trimmed refit finds planted episodes, keeps healthy ones, and honours its cap."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from pipeline.clean import clean_metrics, clean_table, remove_contaminated
from pipeline.params import CleanParams
from pipeline.schema import CLEAN_SCHEMA, SPLIT_SCHEMA

HOUR = 3_600_000_000
MACHINES, HOURS, BINS = 4, 480, 16


@pytest.fixture
def fleet() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Four machines with their own shapes and a common load, a row an hour for twenty days."""
    rng = np.random.default_rng(3)
    shape_MF = rng.normal(size=(MACHINES, BINS))
    load = rng.normal(size=(MACHINES, HOURS, 1)) * rng.normal(size=BINS) * 0.5
    spectra = np.exp(shape_MF[:, None] + load + 0.1 * rng.normal(size=(MACHINES, HOURS, BINS)))
    machine_N = np.repeat(np.arange(MACHINES), HOURS)
    time_N = np.tile(np.arange(HOURS) * HOUR, MACHINES)
    return spectra.reshape(-1, BINS).astype(np.float32), machine_N, np.zeros(len(machine_N), np.int32), time_N


def removed(fleet, params=None, seed=0):
    return remove_contaminated(*fleet, CleanParams() if params is None else params, seed)


def test_a_planted_fault_is_removed_as_whole_episodes(fleet):
    fleet[0][100:130, 5:7] *= 3
    fleet[0][HOURS + 200 : HOURS + 224] *= np.linspace(1, 3, BINS, dtype=np.float32)
    result = removed(fleet)
    rows = set(np.flatnonzero(result.removed_N).tolist())
    assert set(range(102, 126)) <= rows  # the whole blocks inside the fault
    assert set(range(HOURS + 204, HOURS + 222)) <= rows
    assert rows <= {*range(96, 132), *range(HOURS + 198, HOURS + 228)}
    assert not result.cap_hit
    assert np.median(result.error_N[102:126]) > 4 > np.median(np.abs(result.error_N))


def test_a_healthy_fleet_loses_next_to_nothing(fleet):
    assert removed(fleet).removed_N.mean() < 0.01


def test_the_cap_keeps_the_worst_removals(fleet):
    fleet[0][96:120, 5] *= 4
    fleet[0][192:216, 5] *= 16
    result = removed(fleet, CleanParams(max_removed_share=0.015))
    assert result.cap_hit
    assert 0 < result.removed_N.sum() <= 0.015 * len(fleet[0])
    assert set(np.flatnonzero(result.removed_N)) == set(range(192, 216))
    nothing = removed(fleet, CleanParams(max_removed_share=0.0))
    assert nothing.cap_hit
    assert not nothing.removed_N.any()


def test_an_epoch_has_its_own_baseline(fleet):
    spectra, machine, epoch, _ = fleet
    changed = (machine == 2) & (np.arange(len(machine)) % HOURS >= 420)  # the last 60 hours: a moved sensor
    spectra[changed] *= np.linspace(5, 0.2, BINS, dtype=np.float32)
    assert removed(fleet).removed_N[changed].mean() > 0.5
    epoch[changed] = 1
    assert removed(fleet).removed_N[changed].mean() < 0.2


def test_the_same_seed_gives_the_same_answer(fleet):
    first, second = removed(fleet, seed=5), removed(fleet, seed=5)
    np.testing.assert_array_equal(first.error_N, second.error_N)


def test_order_of_rows_does_not_matter(fleet):
    fleet[0][96:120, 5] *= 5
    order = np.random.default_rng(0).permutation(len(fleet[0]))
    shuffled = removed(tuple(part[order] for part in fleet))
    np.testing.assert_array_equal(shuffled.removed_N, removed(fleet).removed_N[order])


@pytest.mark.parametrize("rows", [1, 2, 10])
def test_few_rows_are_kept(rows):
    spectra = np.random.default_rng(0).lognormal(size=(rows, BINS)).astype(np.float32)
    zeros = np.zeros(rows, np.int32)
    result = remove_contaminated(spectra, zeros, zeros, np.arange(rows) * HOUR, CleanParams(), 0)
    assert not result.removed_N.any()
    assert np.isfinite(result.error_N).all()


def test_features_are_not_seen_in_log():
    spectra = np.random.default_rng(0).normal(size=(480, 3)).astype(np.float32)
    spectra[96:108] += 30
    zeros = np.zeros(480, np.int32)
    result = remove_contaminated(spectra, zeros, zeros, np.arange(480) * HOUR, CleanParams(components=1), 0, log=False)
    assert set(np.flatnonzero(result.removed_N)) >= set(range(96, 108))


def test_the_table_has_all_rows_of_the_split(fleet):
    fleet[0][96:120, 5] *= 5
    _, machine, _, time = fleet
    result = removed(fleet)
    count = len(machine) + 3  # three rows at the end that nobody looks at
    split = pa.table(
        {
            "file": pa.array(["day.parquet"] * count),
            "row": pa.array(np.arange(count)),
            "machine_id": pa.array([f"m{m}" for m in machine] + ["x"] * 3),
            "timestamp": pa.array(np.r_[time, 0, 1, 2]),
            "log_status": pa.array(["healthy"] * count),
            "epoch": pa.array([0] * count),
            "role": pa.array(["train"] * len(machine) + ["test"] * 3),
            "label": pa.array(["healthy"] * count),
            "failure_id": pa.nulls(count, pa.string()),
        }
    ).cast(SPLIT_SCHEMA)
    looked_at = np.arange(count) < len(machine)
    table = clean_table(split, looked_at, result)
    assert table.schema.equals(CLEAN_SCHEMA)
    assert table["error"].null_count == 3
    assert table["error"][-1].as_py() is None
    reasons = np.array(table["reason"].to_pylist())
    np.testing.assert_array_equal(reasons == "residual", np.array(table["removed"].to_pylist()))
    metrics = clean_metrics(result, machine, [f"m{m}" for m in range(MACHINES)], CleanParams())
    assert metrics["removed"] == result.removed_N.sum() == (reasons == "residual").sum()
    assert set(metrics["by_machine"]) == {"m0"}
    worst = metrics["worst_episodes"][0]
    assert worst["machine"] == "m0"
    assert "1970-01-05T00:00:00+00:00" <= worst["start"] < worst["end"] <= "1970-01-06T00:00:00+00:00"
    assert worst["removed"]

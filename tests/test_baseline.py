"""Baselines per machine, epoch and condition: who gets their own, and what serves those who do not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pipeline.detectors.baseline import BaselineTable, baselines_from, fit_baselines, spectra_features
from pipeline.rows import RowKeys

BINS, MACHINES, CONDITIONS = 6, ["m0", "m1", "m2", "m3"], ["idle", "cut", "rare"]
LEVEL = np.array([0.0, 3.0, 6.0])  # of the log magnitude in each condition


def fleet(rng: np.random.Generator, rows: int = 1200) -> tuple[np.ndarray, RowKeys]:
    """Four machines that idle and cut, one of them sometimes in a rare condition that no other knows."""
    machine, condition = rng.integers(0, 4, rows), rng.integers(0, 2, rows)
    condition[(machine == 3) & (rng.random(rows) < 0.3)] = 2
    logs = 0.2 * machine[:, None] + LEVEL[condition][:, None] + 0.1 * rng.normal(size=(rows, BINS))
    keys = RowKeys(MACHINES, machine, np.zeros(rows, int), CONDITIONS, condition)
    return np.exp(logs).astype(np.float32), keys


def relative(table: BaselineTable, spectra: np.ndarray, keys: RowKeys) -> np.ndarray:
    code = table.codes(keys)
    return (spectra_features(spectra, table.floor, table.log) - table.location[code]) / table.scale[code]


def one(machine: int, epoch: int, condition: int) -> RowKeys:
    names = [*MACHINES, "new"], [*CONDITIONS, "unheard of"]
    return RowKeys(names[0], np.array([machine]), np.array([epoch]), names[1], np.array([condition]))


def test_conditions_are_alike_after_their_own_baseline_and_far_apart_with_one_of_all(rng) -> None:
    spectra, keys = fleet(rng)
    by_condition, of_all = fit_baselines(spectra, keys), fit_baselines(spectra, keys, scope="machine")
    assert 0.8 < relative(by_condition, spectra, keys).std() < 1.3
    # a rise of half a unit is five deviations within a condition, and drowns between conditions
    louder = spectra * np.float32(np.exp(0.5))
    rise = [
        np.median(relative(table, louder, keys) - relative(table, spectra, keys)) for table in (by_condition, of_all)
    ]
    assert rise[0] > 3.5
    assert rise[1] < 1
    assert len(of_all.keys) == 4
    assert of_all.condition_column is None


def test_unknown_keys_get_the_fleets_baseline_of_their_condition_and_unknown_conditions_the_fleets(rng) -> None:
    spectra, keys = fleet(rng)
    table = fit_baselines(spectra, keys)
    assert table.conditions == ("idle", "cut"), "one machine's condition is no fleet's"
    assert len(table.keys) == 9
    for machine, epoch in ((4, 0), (0, 5)):
        codes = [int(table.codes(one(machine, epoch, condition))[0]) for condition in range(4)]
        assert codes == [1, 2, 0, 0]
    own = table.codes(one(3, 0, 2))
    assert table.is_own(own).all()
    assert table.keys[own[0] - 3] == ("m3", 0, "rare")
    assert table.codes(keys).min() > 2
    assert set(table.fleet_codes(keys)) == {0, 1, 2}
    np.testing.assert_allclose(table.location[1:3, 0], LEVEL[:2] + 0.3, atol=0.05)
    # wider than a machine's own by the spread between machines, narrower than the fleet's over all conditions
    assert table.scale[3:].mean() < table.scale[1:3].mean()
    assert table.scale[1:3].mean() < table.scale[0].mean()


def test_a_machine_with_few_rows_of_a_condition_gets_the_fleets_of_it(rng) -> None:
    spectra, keys = fleet(rng)
    cut_of_m0 = np.flatnonzero((keys.machine_N == 0) & (keys.condition_N == 1))
    kept = np.delete(np.arange(len(keys)), cut_of_m0[19:])
    table = fit_baselines(spectra[kept], keys.take(kept), min_rows=20)
    assert ("m0", 0, "cut") not in table.keys
    assert ("m0", 0, "idle") in table.keys
    assert table.codes(one(0, 0, 1)).tolist() == [2]


def test_a_condition_in_which_every_machine_is_short_has_a_fleets_baseline_of_all_rows(rng) -> None:
    spectra, keys = fleet(rng)
    short = np.concatenate([np.flatnonzero((keys.machine_N == m) & (keys.condition_N == 1))[:15] for m in range(4)])
    kept = np.sort(np.r_[np.flatnonzero(keys.condition_N == 0), short])
    table = fit_baselines(spectra[kept], keys.take(kept), min_rows=20)
    assert table.conditions == ("idle", "cut")
    assert {condition for _, _, condition in table.keys} == {"idle"}
    assert abs(float(table.location[2, 0]) - 3.3) < 0.15


def test_the_names_and_not_their_codes_decide(rng) -> None:
    spectra, keys = fleet(rng)
    table = fit_baselines(spectra, keys)
    turned = RowKeys(MACHINES[::-1], 3 - keys.machine_N, keys.epoch_N, CONDITIONS[::-1], 2 - keys.condition_N)
    np.testing.assert_array_equal(table.codes(turned), table.codes(keys))
    assert len(table.codes(keys.take(slice(0)))) == 0


def test_what_is_stored_comes_back(rng) -> None:
    spectra, keys = fleet(rng)
    keys = replace(keys, conditions=["idle/../\n<b>", "", "Ω" * 300])
    for scope in ("machine+condition", "machine", "global"):
        table = fit_baselines(spectra, keys, scope=scope, condition_column="mode")
        again = baselines_from(table.to_json(), table.location, table.scale)
        assert again == replace(table)
        np.testing.assert_array_equal(again.codes(keys), table.codes(keys))
        assert again.condition_column == ("mode" if scope == "machine+condition" else None)
    assert not table.is_own(table.codes(keys)).any()


@pytest.mark.parametrize("scope", ["machine+condition", "machine"])
def test_one_condition_is_as_none(rng, scope: str) -> None:
    spectra, keys = fleet(rng)
    named = replace(keys, condition_N=np.ones(len(keys), int))
    tables = [fit_baselines(spectra, each, scope=scope) for each in (named, keys.of_one_condition())]
    np.testing.assert_array_equal(tables[0].location, tables[1].location)
    np.testing.assert_array_equal(tables[0].scale, tables[1].scale)

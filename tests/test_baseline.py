"""Baselines per machine, epoch and condition: who gets their own, and what serves those who do not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.detectors.baseline import BaselineTable, baselines_from, fit_baselines, spectra_features
from pipeline.detectors.shrinkage import (
    MOST_KEYS,
    Components,
    Described,
    Fleet,
    describe_machines,
    predict,
    variance_components,
)
from pipeline.rows import RowKeys
from pipeline.schema import Baseline

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


def state(table: BaselineTable, machine: int, epoch: int, condition: int) -> Baseline:
    return Baseline(table.states(table.codes(one(machine, epoch, condition)))[0])


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
    assert of_all.own == 4
    assert of_all.condition_column is None


def test_own_then_the_machines_then_the_fleets(rng) -> None:
    spectra, keys = fleet(rng)
    table = fit_baselines(spectra, keys)
    assert table.conditions == ("idle", "cut"), "one machine's condition is no fleet's"
    assert table.own == 9
    own = table.codes(one(3, 0, 2))
    assert table.is_own(own).all()
    assert table.keys[own[0] - 3] == ("m3", 0, "rare")
    assert table.is_own(table.codes(keys)).all()
    cut_of_m1 = spectra[(keys.machine_N == 1) & (keys.condition_N == 1)]
    code = table.codes(one(1, 0, 1))[0]
    np.testing.assert_allclose(table.location[code, :-1], np.median(np.log(cut_of_m1), axis=0), rtol=1e-5)
    assert {state(table, 0, 5, condition) for condition in (0, 1)} == {Baseline.SHRUNK}, (
        "a new epoch of a known machine"
    )
    assert state(table, 3, 5, 2) == Baseline.SHRUNK, "in a condition that it alone knows"
    assert state(table, 0, 0, 2) == state(table, 0, 5, 3) == Baseline.FLEET, "a condition that nobody could predict"
    codes = [int(table.codes(one(4, 0, condition))[0]) for condition in range(4)]
    assert codes == [1, 2, 0, 0]
    assert set(table.fleet_codes(keys)) == {0, 1, 2}
    np.testing.assert_array_equal(table.next_epoch_codes(keys), table.codes(replace(keys, epoch_N=keys.epoch_N + 9)))
    np.testing.assert_allclose(table.location[1:3, 0], LEVEL[:2] + 0.3, atol=0.05)
    # wider than a machine's own by the spread between machines, narrower than the fleet's over all conditions
    assert table.scale[3 : 3 + table.own].mean() < table.scale[1:3].mean()
    assert table.scale[1:3].mean() < table.scale[0].mean()


def test_a_machine_with_few_rows_of_a_condition_leans_on_its_others(rng) -> None:
    spectra, keys = fleet(rng)
    cut_of_m0 = np.flatnonzero((keys.machine_N == 0) & (keys.condition_N == 1))
    for rows in (19, 0):
        kept = np.delete(np.arange(len(keys)), cut_of_m0[rows:])
        table = fit_baselines(spectra[kept], keys.take(kept), min_rows=20)
        assert state(table, 0, 0, 1) == Baseline.SHRUNK
        code = table.codes(one(0, 0, 1))[0]
        # machines differ by the same in both conditions: what it is when idling tells what it is when cutting
        assert abs(table.location[code, :-1].mean() - LEVEL[1]) < 0.5 * abs(table.location[2, :-1].mean() - LEVEL[1])
        known = table.codes(one(1, 0, 1))[0]
        assert table.scale[known].mean() < table.scale[code].mean() < table.scale[2].mean()


def test_after_a_repair_a_machine_is_described_by_what_it_was(rng) -> None:
    spectra, keys = fleet(rng, 4000)
    table = fit_baselines(spectra, keys)
    later, after = fleet(np.random.default_rng(9), 400)
    after = replace(after, epoch_N=np.ones(400, int))
    usual = after.condition_N < 2
    apart = np.abs(relative(table, later[usual], after.take(usual)))
    assert (table.states(table.codes(after)) == Baseline.SHRUNK).all()
    assert np.percentile(apart, 95) < 2, "health after a repair is no news"
    shouted = np.median(relative(table, later[usual] * np.float32(1.5), after.take(usual)))
    of_fleet = (np.log(1.5)) / table.scale[table.fleet_codes(after.take(usual))].mean()
    assert shouted > 1.3 * of_fleet, "a fault is seen better than against the fleet"


def test_a_condition_in_which_every_machine_is_short_has_a_fleets_baseline_of_all_rows(rng) -> None:
    spectra, keys = fleet(rng)
    short = np.concatenate([np.flatnonzero((keys.machine_N == m) & (keys.condition_N == 1))[:15] for m in range(4)])
    kept = np.sort(np.r_[np.flatnonzero(keys.condition_N == 0), short])
    table = fit_baselines(spectra[kept], keys.take(kept), min_rows=20)
    assert table.conditions == ("idle", "cut")
    assert {condition for _, _, condition in table.keys[: table.own]} == {"idle"}
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
        np.testing.assert_array_equal(again.states(again.codes(keys)), table.states(table.codes(keys)))
        assert again.condition_column == ("mode" if scope == "machine+condition" else None)
    assert (table.states(table.codes(keys)) == Baseline.FLEET).all()


@pytest.mark.parametrize("scope", ["machine+condition", "machine"])
def test_one_condition_is_as_none(rng, scope: str) -> None:
    spectra, keys = fleet(rng)
    named = replace(keys, condition_N=np.ones(len(keys), int))
    tables = [fit_baselines(spectra, each, scope=scope) for each in (named, keys.of_one_condition())]
    np.testing.assert_array_equal(tables[0].location, tables[1].location)
    np.testing.assert_array_equal(tables[0].scale, tables[1].scale)


def keys_of(*keys: tuple[int, int, int, int, float, float]) -> Described:
    """Keys (machine, epoch, condition, rows, location, scale) of one feature; each row is a look of its own."""
    columns = np.array(keys, float).reshape(-1, 6).T
    return Described(*columns[:4].astype(np.int64), columns[3], columns[4][:, None], columns[5][:, None])


FLEETS: dict[int | None, Fleet] = dict.fromkeys(
    [None, 0, 1, 2, 3], Fleet(np.array([5.0]), np.array([1.0]), np.array([2.0]))
)
PLAIN = Components(delta=0.2, phi=0.9, shared=frozenset(range(4)))
ROWS = st.integers(1, 10_000)
PLACES = st.floats(-50, 50)


@given(rows=ROWS, location=PLACES, shrink_rows=st.floats(0.01, 1e3))
def test_a_key_alone_leans_on_the_fleet_by_its_rows(rows: int, location: float, shrink_rows: float) -> None:
    alone = keys_of((0, 0, 0, rows, location, 1.0))
    found = predict(alone, alone, FLEETS, PLAIN, shrink_rows)
    weight = rows / (rows + max(shrink_rows, 1) / 4)  # rows vary by a quarter of the variance between machines
    np.testing.assert_allclose(found.location_KG[0, 0], 5 + weight * (location - 5), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(found.scale_KG[0, 0] ** 2, 1 + (1 - weight) * 4, rtol=1e-6)


def test_rows_that_are_worth_few_looks_lean_on_the_fleet_by_their_looks() -> None:
    alike = replace(keys_of((0, 0, 0, 600, 9.0, 3.0)), looks_K=np.array([4.0]))
    found = predict(alike, alike, FLEETS, PLAIN, 30.0)
    weight = 4 / (4 + 1 / 4)  # 150 rows are a look, more than the 30 that count as one at least
    np.testing.assert_allclose(found.location_KG[0, 0], 5 + weight * 4, rtol=1e-6)
    within = (4 * 9 + 30 * 1) / 34  # four looks of its own scale, thirty of the fleet's
    np.testing.assert_allclose(found.scale_KG[0, 0] ** 2, within + (1 - weight) * 4, rtol=1e-6)
    own, _ = describe_machines(
        Described.joined([alike, replace(alike, machine_K=alike.machine_K + 1)]), FLEETS, PLAIN, 30.0, 20
    )
    assert not own.names()


@given(own=st.floats(0.2, 5), location=PLACES, other=PLACES)
def test_many_rows_stand_for_themselves_and_none_for_the_fleet(own: float, location: float, other: float) -> None:
    many = keys_of((0, 0, 0, 10**9, location, own), (0, 0, 1, 50, other, 1.0))
    found = predict(many, many, FLEETS, PLAIN, 30.0)
    np.testing.assert_allclose(found.location_KG[0, 0], location, atol=1e-3)
    np.testing.assert_allclose(found.scale_KG[0, 0], own, rtol=1e-3)
    foreign = predict(many, keys_of((0, 10**6, 9, 0, 0, 0)), FLEETS, PLAIN, 30.0)
    np.testing.assert_allclose(foreign.location_KG[0, 0], 5.0)
    np.testing.assert_allclose(foreign.scale_KG[0, 0] ** 2, FLEETS[None].scale_G[0] ** 2)


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), ROWS, PLACES, st.floats(0, 9)), min_size=1, max_size=12)
)
def test_a_prediction_is_never_narrower_than_rows_nor_wider_than_the_fleet_and_more_rows_do_not_widen(drawn) -> None:
    unique = {(epoch, condition): (0, epoch, condition, *rest) for epoch, condition, *rest in drawn}
    known = keys_of(*unique.values())
    wanted = keys_of((0, 2, 1, 0, 0, 0), (0, 7, 3, 0, 0, 0))
    silent = replace(known, scale_KG=np.ones_like(known.scale_KG))  # rows vary as the fleet's do
    found = predict(silent, wanted, FLEETS, PLAIN, 30.0)
    assert (found.scale_KG >= 1 - 1e-9).all()
    assert (found.scale_KG <= FLEETS[None].scale_G[0] + 1e-9).all()
    doubled = predict(
        replace(silent, rows_K=2 * silent.rows_K, looks_K=2 * silent.looks_K), wanted, FLEETS, PLAIN, 30.0
    )
    assert (doubled.scale_KG <= found.scale_KG + 1e-9).all()
    narrow = predict(replace(known, scale_KG=0 * known.scale_KG), known, FLEETS, PLAIN, 0.0)
    assert (narrow.scale_KG >= 0.1 - 1e-9).all(), "rows that never move do not make a baseline that nothing fits"


def test_the_nearer_epoch_and_the_same_condition_count_most() -> None:
    known = keys_of((0, 0, 0, 500, 9.0, 1.0), (0, 3, 0, 500, 7.0, 1.0), (0, 3, 1, 500, 1.0, 1.0))
    after, elsewhere = keys_of((0, 4, 0, 0, 0, 0)), keys_of((0, 4, 1, 0, 0, 0))
    assert abs(predict(known, after, FLEETS, PLAIN, 30.0).location_KG[0, 0] - 7.0) < 0.5
    assert predict(known, elsewhere, FLEETS, PLAIN, 30.0).location_KG[0, 0] < 3


@pytest.mark.parametrize(("delta", "changed"), [(0.1, 0.02), (0.5, 0.3)])
def test_the_parts_of_the_variance_are_found(rng, delta: float, changed: float) -> None:
    """120 machines, two epochs and three conditions drawn from the process itself."""
    truth = Components(delta, 1 - changed, frozenset(range(3)))
    place = keys_of(*[(0, epoch, condition, 400, 0, 0) for epoch in (0, 1) for condition in (0, 1, 2)])
    root = np.linalg.cholesky(truth.covariance(place, place))
    keys = []
    for machine in range(120):
        drawn = root @ rng.normal(size=(6, 40)) * 2
        keys.append(replace(place, machine_K=place.machine_K + machine, location_KG=drawn, scale_KG=0 * drawn + 0.5))
    seen = Described.joined(keys)
    found = variance_components(seen, dict.fromkeys([None, 0, 1, 2], Fleet.of_keys(seen)))
    assert abs(found.delta - delta) < 0.1
    assert abs((1 - found.phi) - changed) < 0.06
    assert abs(Fleet.of_keys(seen).noise - 0.25 / 4) < 0.02


def test_a_condition_that_one_machine_knows_neither_tells_nor_hears_of_others() -> None:
    known = keys_of((0, 0, 0, 50, 4.0, 1.0), (0, 0, 7, 50, 400.0, 1.0))
    wanted = keys_of((0, 0, 0, 50, 0, 0), (0, 0, 7, 50, 0, 0))
    apart = predict(known.take(slice(1)), wanted, FLEETS, PLAIN, 30.0)
    both = predict(known, wanted, FLEETS, PLAIN, 30.0)
    assert both.location_KG[0, 0] == pytest.approx(apart.location_KG[0, 0])
    assert both.location_KG[1, 0] > 300


def test_few_machines_are_taken_to_differ_more_than_they_show(rng) -> None:
    drawn = rng.normal(size=(2000, 4, 1))
    true_share = []
    for machines in (3, 4):
        spread = [
            Fleet.of_keys(keys_of(*[(m, 0, 0, 99, place, 1.0) for m, place in enumerate(each[:machines, 0])])).spread_G[
                0
            ]
            for each in drawn[:300]
        ]
        true_share.append(float(np.mean(spread)))
    assert all(0.7 < share < 1.3 for share in true_share)
    alone = Fleet.of_keys(keys_of((0, 0, 0, 99, 3.0, 0.7)))
    assert alone.spread_G[0] == pytest.approx(0.7), "one machine says nothing of others"


def test_a_machine_of_very_many_conditions_is_described_in_parts(rng) -> None:
    count = MOST_KEYS + 30
    keys = keys_of(*[(0, 0, c, 50 + c, rng.normal(), 1.0) for c in range(count)], (1, 0, 0, 60, 1.0, 1.0))
    own, _ = describe_machines(keys, FLEETS, variance_components(keys, FLEETS), 30.0, 20)
    assert set(own.names()) == set(keys.names())
    assert np.isfinite(own.location_KG).all()

"""Absolute limits: velocity by ISO 20816 from spectra of acceleration or velocity, per machine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.bands import band_plan, band_spectra
from pipeline.detectors import Detector, Fitting, TrainingRows, fit_baselines, load_detector, make_detector
from pipeline.detectors.absolute_limit import velocity_weights
from pipeline.errors import ContractError
from pipeline.layout import WaveformLayout
from pipeline.params import TrainParams
from pipeline.rows import RowKeys
from pipeline.schema import ISO_ZONES, FleetSpec, LimitSpec, load_fleet_spec
from pipeline.store import write_fleet_spec

CPU, G = torch.device("cpu"), 9.80665
PARAMS = TrainParams.model_validate({"score_batch_rows": 64})
NAMES = ["pump", "fan", "mill"]
EDGES = tuple(float(edge) for edge in range(5, 1206, 10))  # 120 bands of 10 Hz about 10, 20, 30 ...
BINS = len(EDGES) - 1


def fleet(**values: object) -> FleetSpec:
    limits = {"amplitude": "rms", "zones": "iso20816-3-group2-rigid", "machines": {"fan": [2.3, 4.5, 7.1]}}
    return FleetSpec.model_validate({"band_edges_hz": EDGES, "unit": "m/s2", "limits": limits} | values)


def fitted(spec: FleetSpec, rng: np.random.Generator) -> Detector:
    spectra = np.exp(rng.normal(size=(90, spec.bins))).astype(np.float32) * 1e-3
    keys = keys_of(np.repeat([0, 1, 2], 30))
    table = fit_baselines(spectra, keys)
    detector = make_detector("absolute_limit", table, PARAMS, CPU, spec)
    code = table.codes(keys)
    detector.fit(TrainingRows(spectra, code, spectra, code), Fitting(0, CPU))
    return detector


def keys_of(machine_N: object, epoch: int = 0) -> RowKeys:
    machine_N = np.asarray(machine_N)
    return RowKeys.of([*NAMES, "new"], machine_N, np.full(len(machine_N), epoch))


def tone(hz: int, velocity_mm_s: float) -> np.ndarray:
    """A spectrum of acceleration (m/s2, RMS) of one sine with this RMS velocity."""
    spectrum = np.zeros((1, BINS), np.float32)
    spectrum[0, hz // 10 - 1] = velocity_mm_s / 1000 * 2 * np.pi * hz
    return spectrum


def test_a_tone_scores_its_velocity_over_the_limit_of_its_machine(rng) -> None:
    detector = fitted(fleet(), rng)
    score = {
        name: detector.score(tone(160, 9.0), detector.baselines.codes(keys_of([place])))[0]
        for place, name in enumerate([*NAMES, "new"])
    }
    # the middle of a band is its geometric mean: 159.92 Hz and not 160
    assert score["pump"] == score["mill"] == score["new"] == pytest.approx(9.0 / 4.5, rel=2e-3)
    assert score["fan"] == pytest.approx(9.0 / 7.1, rel=2e-3)
    repaired = detector.score(tone(160, 9.0), detector.baselines.codes(keys_of([1], epoch=3)))[0]
    assert repaired == score["fan"], "a repair does not move a limit"


def test_only_10_to_1000_hz_count(rng) -> None:
    detector = fitted(fleet(), rng)
    code = detector.baselines.codes(keys_of([0]))
    assert detector.score(tone(1100, 50.0), code)[0] == 0
    assert detector.score(tone(990, 4.5), code)[0] == pytest.approx(1.0, rel=2e-3)
    half = detector.score(tone(1000, 4.5), code)[0]  # half of the band from 995 to 1005 Hz lies inside
    assert half == pytest.approx(np.sqrt(0.5), rel=5e-3)


@settings(max_examples=30)
@given(st.lists(st.floats(0, 20), min_size=3, max_size=3))
def test_tones_add_by_their_power_and_the_shares_to_the_score(velocities: list[float]) -> None:
    detector = fitted(fleet(), np.random.default_rng(0))
    code = detector.baselines.codes(keys_of([0]))
    row = sum(tone(hz, velocity) for hz, velocity in zip((60, 180, 720), velocities, strict=True))
    score, shares = detector.score(row, code)[0], detector.explain(row, code)[0]
    assert score == pytest.approx(np.sqrt(np.square(velocities).sum()) / 4.5, rel=5e-3, abs=1e-6)
    assert shares.sum() == pytest.approx(score, rel=1e-5, abs=1e-9)
    assert (shares >= 0).all()


def test_units_agree(rng) -> None:
    in_ms2 = fitted(fleet(), rng)
    code = in_ms2.baselines.codes(keys_of([0]))
    expected = in_ms2.score(tone(160, 3.0), code)
    in_g = fitted(fleet(unit="g"), rng)
    np.testing.assert_allclose(in_g.score(tone(160, 3.0) / np.float32(G), code), expected, rtol=1e-5)
    limits = {"amplitude": "peak", "zones": "iso20816-3-group2-rigid"}
    peaks = fitted(fleet(limits=limits), rng)
    np.testing.assert_allclose(peaks.score(tone(160, 3.0) * np.float32(np.sqrt(2)), code), expected, rtol=1e-5)
    velocity = np.zeros((1, BINS), np.float32)
    velocity[0, 15] = 3.0 / 25.4
    in_ips = fitted(fleet(unit="in/s"), rng)
    np.testing.assert_allclose(in_ips.score(velocity, code), [3.0 / 4.5], rtol=1e-5)


def test_bands_made_of_a_waveform_tell_its_velocity(rng) -> None:
    """A signal with a known velocity, through the same bands that ingest makes: RMS over the lines of a Hann window."""
    rate, layout = 2560.0, WaveformLayout(window_samples=4096, bands=32, max_hz=1280)
    time = np.arange(4096) / rate
    tones = [(55.0, 2.0), (333.0, 1.0)]
    signal = sum(np.sqrt(2) * v / 1000 * 2 * np.pi * hz * np.sin(2 * np.pi * hz * time + hz) for hz, v in tones)
    plan = band_plan(layout, rate, "test")
    row = band_spectra(np.asarray(signal, np.float32)[None], plan, "rms")
    limits = {"amplitude": "peak", "lines_per_band": 64, "zones": [1, 2, 3]}
    spec = fleet(band_edges_hz=plan.edges_hz, limits=limits)
    detector = fitted(spec, rng)
    velocity = 3 * detector.score(row, detector.baselines.codes(keys_of([0])))[0]
    assert velocity == pytest.approx(np.sqrt(5), rel=0.12), (
        "bands of 40 Hz tell a tone's frequency within a few percent"
    )


def test_of_several_axes_the_worst_counts(rng) -> None:
    edges = EDGES[: BINS // 2 + 1]
    detector = fitted(fleet(axes=["x", "y"], band_edges_hz=edges), rng)
    row = np.zeros((1, BINS), np.float32)
    row[0, 5], row[0, BINS // 2 + 5] = 0.1, 0.3
    code = detector.baselines.codes(keys_of([0]))
    alone = row.copy()
    alone[0, 5] = 0
    assert detector.score(row, code) == detector.score(alone, code)
    assert np.flatnonzero(detector.explain(row, code)[0]).tolist() == [BINS // 2 + 5]


def test_machines_without_a_limit_score_nothing(rng) -> None:
    limits = {"amplitude": "rms", "machines": {"pump": "iso20816-3-group1-flexible"}}
    detector = fitted(fleet(limits=limits), rng)
    scores = detector.score(np.repeat(tone(160, 11.0), 4, 0), detector.baselines.codes(keys_of([0, 1, 2, 3])))
    assert scores.round(2).tolist() == [1.0, 0.0, 0.0, 0.0]
    assert detector.explain(tone(160, 11.0), detector.baselines.codes(keys_of([1]))).tolist() == [[0.0] * BINS]


def test_the_limits_travel_with_the_detector_and_with_the_snapshot(rng, tmp_path: Path) -> None:
    detector = fitted(fleet(), rng)
    detector.save(tmp_path)
    again = load_detector(tmp_path)  # no fleet.yaml here
    code = detector.baselines.codes(keys_of([0, 1, 3]))
    row = np.repeat(tone(250, 5.0), 3, 0)
    np.testing.assert_array_equal(again.score(row, code), detector.score(row, code))
    np.testing.assert_array_equal(again.explain(row, code), detector.explain(row, code))
    assert again.settings()["zones"] == {"": [1.4, 2.8, 4.5], "fan": [2.3, 4.5, 7.1]}
    write_fleet_spec(tmp_path / "fleet.yaml", fleet())
    assert load_fleet_spec(tmp_path / "fleet.yaml") == fleet()


def test_healthy_rows_beyond_the_limit_are_doubted(rng) -> None:
    spectra = np.repeat(tone(160, 30.0), 40, 0)
    table = fit_baselines(spectra + np.float32(1e-6), keys_of([0] * 40))
    detector = make_detector("absolute_limit", table, PARAMS, CPU, fleet())
    history = detector.fit(
        TrainingRows(spectra, table.codes(keys_of([0] * 40)), spectra, table.codes(keys_of([0] * 40))), Fitting(0, CPU)
    )
    assert "are unit, amplitude and zones of fleet.yaml right?" in history["warnings"][0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"limits": None}, "limits: got none, with absolute_limit among the detectors"),
        ({"unit": "um"}, r"unit: got um \(displacement\), expected a unit of acceleration or velocity"),
        ({"unit": "furlong"}, "unit: got 'furlong'"),
        ({"band_edges_hz": None, "bins": BINS}, "band_edges_hz: got none"),
        ({"kind": "features"}, "kind: got features, expected spectrum"),
        (
            {"band_edges_hz": [2000 + edge for edge in EDGES]},
            "got 2005 to 3205 Hz, expected bands between 10 and 1000 Hz",
        ),
    ],
)
def test_what_is_missing_is_said_in_one_line(values: dict, message: str, rng) -> None:
    with pytest.raises(ContractError, match=message) as raised:
        fitted(fleet(**values), rng)
    assert "\n" not in str(raised.value)
    assert "fleet.yaml" in str(raised.value)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ("zones: iso20816-3-group9\n  amplitude: rms", "iso20816-3-group1-rigid"),
        ("zones: [4.5, 2.8, 7.1]\n  amplitude: rms", "that increase"),
        ("amplitude: rms", "neither zones nor machines"),
        ("zones: [1, 2, 3]", "amplitude"),
        ("zones: [1, 2, 3]\n  amplitude: rms\n  lines_per_band: 4", "with peak only"),
        ("zones: [1, 2, 3]\n  amplitude: rms\n  lowest_hz: 2000", "lowest_hz < highest_hz"),
        ("zones: [1, 2, 3]\n  amplitude: rms\n  machine: {}", "machine"),
    ],
)
def test_limits_that_say_nothing_are_refused_where_they_stand(limits: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "fleet.yaml").write_text(f"bins: 8\nlimits:\n  {limits}\n")
    with pytest.raises(ContractError, match=message):
        load_fleet_spec(tmp_path / "fleet.yaml")


def test_the_zones_of_the_standard_rise_from_group_to_group() -> None:
    for group in ("1", "2"):
        rigid, flexible = (ISO_ZONES[f"iso20816-3-group{group}-{support}"] for support in ("rigid", "flexible"))
        assert all(soft > hard for soft, hard in zip(flexible, rigid, strict=True))
    assert ISO_ZONES["iso20816-3-group1-rigid"] == ISO_ZONES["iso20816-3-group2-flexible"]


def test_a_wide_first_band_is_weighed_from_10_hz_on() -> None:
    limits = LimitSpec(amplitude="rms", zones=(1, 2, 3))
    weight = velocity_weights(FleetSpec(bins=2, band_edges_hz=(0, 200, 400), unit="m/s2"), limits)
    # even acceleration over 0 to 200 Hz: 95 % of it above 10 Hz, integrated line by line
    hz = np.linspace(10, 200, 200_001)
    exact = np.sqrt(np.mean(1 / (2 * np.pi * hz) ** 2) * 0.95) * 1000
    assert weight[0] == pytest.approx(exact, rel=1e-3)

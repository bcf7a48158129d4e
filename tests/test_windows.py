"""Windows of consecutive rows: what is in them, what they score, and that service refuses them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_fleet import SMALL_PARAMS
from test_neural import BINS, CPU, codes, plain_baselines, plant

from pipeline import calibrate as calibrate_stage
from pipeline import evaluate as evaluate_stage
from pipeline import release as release_stage
from pipeline.calibrate import ensemble_rule
from pipeline.detectors import Fitting, RowOrder, TrainingRows, load_detector
from pipeline.detectors.runs import Intervals, last_looks, windows
from pipeline.detectors.window import WindowDetector
from pipeline.engine import FeatureRows
from pipeline.ensemble import TailTables
from pipeline.errors import ContractError, ParamsError, ReleaseError
from pipeline.measure import measure, measure_rows, score_rows
from pipeline.onnx_export import scorer_model
from pipeline.params import EnsembleParams, WindowParams, load_params, parse_params
from pipeline.release import load_release
from pipeline.rows import RowKeys, Rows
from pipeline.store import read_json
from pipeline.tails import TailTable
from pipeline.train import run as train

WIDTH, MINUTE = 4, 60_000_000
SMALL: dict[str, Any] = {
    "window": WIDTH, "hidden": 16, "latent": 6, "channels": [4], "code_distance": "mahalanobis",
    "optimiser": {"batch_rows": 64, "max_epochs": 3, "learning_rate": 0.01},
}  # fmt: skip
TINY = "{window: 4, hidden: 8, latent: 4, optimiser: {max_epochs: 1, batch_rows: 256}}"
ARCHITECTURES = ["lstm", "convolutional"]


def order_of(machine: list[int], minute: list[float], epoch: list[int] | None = None) -> RowOrder:
    names = [f"m{code}" for code in range(max(machine, default=0) + 1)]
    keys = RowKeys.of(names, np.array(machine, int), np.array(epoch or [0] * len(machine), int))
    return RowOrder(keys, (np.array(minute) * MINUTE).astype(np.int64))


def two_machines(rows: int, seed: int = 0) -> tuple[np.ndarray, RowOrder]:
    """Rows of two machines in turns, a minute apart, with a stop of an hour in the middle; levels rise and fall."""
    machine, minute = np.tile([0, 1], rows // 2), np.repeat(np.arange(rows // 2), 2)
    minute = minute + 60 * (minute > rows // 4)
    x = plant(rows, seed=seed)
    x += np.sin(minute / 3.0)[:, None].astype(np.float32)
    return x, order_of(machine.tolist(), minute.tolist())


def make(architecture: str = "lstm", **changes: Any) -> WindowDetector:
    params = WindowParams.model_validate({"architecture": architecture} | SMALL | changes)
    return WindowDetector(plain_baselines(BINS), 64, CPU, params=params)


def fitted(architecture: str = "lstm", fitting: Fitting | None = None, **changes: Any) -> tuple[WindowDetector, dict]:
    detector = make(architecture, **changes)
    (x, order), (later, later_order) = two_machines(600), two_machines(200, seed=9)
    rows = TrainingRows(x, codes(x), later, codes(later), order=order, validation_order=later_order)
    return detector, detector.fit(rows, fitting or Fitting(3, CPU))


def rows_of(x: np.ndarray, order: RowOrder) -> Rows:
    keys = order.keys
    return Rows(
        x, keys.machine_N, keys.machines, keys.epoch_N, keys.condition_N, keys.conditions, order.time_us, pa.table({})
    )


class TestRuns:
    @settings(max_examples=60, deadline=None)
    @given(
        st.lists(st.tuples(st.integers(0, 2), st.integers(0, 30), st.integers(0, 1)), min_size=1, max_size=25),
        st.integers(2, 5),
    )
    def test_as_a_reading_row_by_row(self, rows: list[tuple[int, int, int]], width: int) -> None:
        machine, minute, epoch = (list(column) for column in zip(*rows, strict=True))
        got = windows(order_of(machine, minute, epoch), width, 3.0, Intervals({}, MINUTE))
        for index in range(len(rows)):
            mine = [i for i in range(len(rows)) if machine[i] == machine[index] and epoch[i] == epoch[index]]
            mine.sort(key=lambda i: (minute[i], i))
            back = [index]
            place = mine.index(index)
            while len(back) < width and place > 0 and minute[mine[place]] - minute[mine[place - 1]] <= 3:
                place -= 1
                back.insert(0, mine[place])
            expected = [back[0]] * (width - len(back)) + back
            assert got[index].tolist() == expected

    def test_the_usual_interval_is_the_machines_own(self) -> None:
        order = order_of([0, 0, 0, 1, 1, 1, 2], [0, 1, 2, 0, 10, 100, 5])
        found = Intervals.of(order)
        assert found.machines == {"m0": MINUTE, "m1": 10 * MINUTE}
        assert found.of_machines(["m1", "new"]).tolist() == [10 * MINUTE, found.usual]

    def test_no_rows(self) -> None:
        assert windows(order_of([], []), 3, 2.0, Intervals({}, 1)).shape == (0, 3)
        assert Intervals.of(order_of([], [])) == Intervals({}, 1)

    def test_a_row_is_needed_until_its_last_window(self) -> None:
        window = windows(two_machines(40)[1], 3, 3.0, Intervals({}, MINUTE))
        expected = [max(i for i in range(40) if row in window[i]) for row in range(40)]
        assert last_looks(window).tolist() == expected


class TestGathering:
    def test_streamed_and_resident_windows_train_in_the_same_order(self, tmp_path: Path) -> None:
        x, order = two_machines(600)
        window = windows(order, WIDTH, 3.0, Intervals({}, MINUTE))
        rows = {
            resident: FeatureRows.gather(
                iter([torch.from_numpy(x)]), 600, BINS, CPU, scratch=tmp_path, resident=resident
            ).in_windows(window)
            for resident in (True, False)
        }
        expected = x[window].reshape(600, -1)
        for kept in rows.values():
            assert kept.bins == WIDTH * BINS
            np.testing.assert_array_equal(torch.cat(list(kept.parts(100))), expected)
        epochs = {}
        for resident, kept in rows.items():
            epochs[resident] = torch.cat([chunk.take(chunk.order) for chunk in kept.epoch(5, 64)])
        np.testing.assert_array_equal(epochs[True], epochs[False])
        np.testing.assert_array_equal(np.unique(epochs[True], axis=0), np.unique(expected, axis=0))


class TestDetector:
    @pytest.mark.parametrize("architecture", ARCHITECTURES)
    def test_learns_and_comes_back_from_disk(self, architecture: str, tmp_path: Path) -> None:
        detector, history = fitted(architecture)
        losses = [epoch["validation_loss"] for epoch in history["epochs"]]
        assert losses[-1] < losses[0]
        x, order = two_machines(160, seed=4)
        window = detector.windows(order)
        expected = detector.score(x, codes(x), window)
        assert np.isfinite(expected).all()
        again, _ = fitted(architecture)
        np.testing.assert_array_equal(again.score(x, codes(x), window), expected)
        shares = detector.explain(x, codes(x), window)
        assert shares.shape == x.shape
        np.testing.assert_allclose(shares.sum(1), expected, rtol=1e-9)
        detector.save(tmp_path)
        loaded = load_detector(tmp_path)
        assert isinstance(loaded, WindowDetector)
        assert loaded.intervals == detector.intervals
        np.testing.assert_array_equal(loaded.score(x, codes(x), loaded.windows(order)), expected)

    @pytest.mark.parametrize("architecture", ARCHITECTURES)
    def test_a_window_scores_the_same_bits_whatever_stands_beside_it(self, architecture: str) -> None:
        detector, _ = fitted(architecture)
        x, order = two_machines(160, seed=4)
        window = detector.windows(order)
        expected = detector.score(x, codes(x), window)
        shuffled = np.random.default_rng(1).permutation(160)
        keys = order.keys.take(shuffled)
        moved = detector.windows(RowOrder(keys, order.time_us[shuffled]))
        np.testing.assert_array_equal(detector.score(x[shuffled], codes(x), moved), expected[shuffled])
        for place in (np.s_[:1], np.s_[63:66], np.s_[100:]):
            np.testing.assert_array_equal(detector.score(x, codes(x), window[place]), expected[place])

    def test_hears_an_order_that_no_single_row_shows(self) -> None:
        changes = {"optimiser": SMALL["optimiser"] | {"max_epochs": 20}, "latent": 12, "score": "residual"}
        detector, _ = fitted("lstm", **changes)
        x, order = two_machines(300, seed=4)
        mixed = x.copy()
        for machine in (0, 1):  # the same rows of each machine, in another order
            mine = np.flatnonzero(order.keys.machine_N == machine)
            mixed[mine] = x[np.random.default_rng(machine).permutation(mine)]
        window = detector.windows(order)
        usual, strange = (detector.score(rows, codes(rows), window) for rows in (x, mixed))
        assert np.median(strange) > np.percentile(usual, 80)

    def test_pieces_score_as_the_whole_does_to_the_bit(self) -> None:
        detector, _ = fitted()
        x, order = two_machines(160, seed=4)
        rows = rows_of(x, order)
        detectors = {"window_autoencoder": detector}
        whole = measure_rows(detectors, rows).raw["window_autoencoder"]
        pieces = [(slice(begin, begin + 32), x[begin : begin + 32]) for begin in range(0, 160, 32)]
        in_pieces = measure(detectors, rows, pieces).raw["window_autoencoder"]
        np.testing.assert_array_equal(in_pieces, whole)
        np.testing.assert_array_equal(detector.score(x, codes(x), detector.windows(order)), whole)

    def test_files_that_go_back_in_time_are_refused(self) -> None:
        detector, _ = fitted()
        x, order = two_machines(64)
        back = np.arange(64)[::-1]
        rows = rows_of(x[back], RowOrder(order.keys.take(back), order.time_us[back]))
        pieces = [(slice(begin, begin + 32), rows.spectra[begin : begin + 32]) for begin in (0, 32)]
        with pytest.raises(ContractError, match="a row whose predecessor comes in a later file"):
            measure({"window_autoencoder": detector}, rows, pieces)

    def test_goes_on_from_its_checkpoint(self, tmp_path: Path) -> None:
        _, history = fitted()
        said: list[str] = []
        fitted(fitting=Fitting(3, CPU, checkpoint=tmp_path))
        _, again = fitted(fitting=Fitting(3, CPU, say=said.append, checkpoint=tmp_path))
        assert any(line.startswith("goes on after epoch 3") for line in said)
        assert again["epochs"] == history["epochs"]
        said.clear()
        fitted(fitting=Fitting(3, CPU, say=said.append, checkpoint=tmp_path), max_gap=100.0)
        assert any("training starts again" in line for line in said)

    def test_any_number_of_bins_and_a_learned_variance(self) -> None:
        for architecture in ARCHITECTURES:
            for bins in (1, 33):
                params = WindowParams.model_validate(
                    {"architecture": architecture} | SMALL | {"loss": "gaussian", "latent": 2}
                )
                detector = WindowDetector(plain_baselines(bins), 64, CPU, params=params)
                x, (_, order) = plant(80, bins), two_machines(80)
                detector.fit(
                    TrainingRows(x, codes(x), x, codes(x), order=order, validation_order=order), Fitting(3, CPU)
                )
                assert np.isfinite(detector.score(x, codes(x), detector.windows(order))).all()


class TestRefusals:
    def test_single_rows(self) -> None:
        detector, _ = fitted()
        x = plant(5)
        with pytest.raises(ContractError, match="windows of 4: this detector does not score single rows"):
            detector.score(x, codes(x))

    def test_rows_without_times(self) -> None:
        x = plant(50)
        with pytest.raises(ContractError, match="rows without machine and time"):
            make().fit(TrainingRows(x, codes(x), x, codes(x)), Fitting(3, CPU))

    def test_an_onnx_file(self) -> None:
        detector, _ = fitted()
        with pytest.raises(ReleaseError, match="window_autoencoder, which sees 4 rows at once"):
            scorer_model(detector)

    @pytest.mark.parametrize(
        ("text", "told"),
        [
            ("detectors: [pca, window_autoencoder]\nrelease: {detector: window_autoencoder}\n", "release.detector"),
            (
                "detectors: [pca, vae, window_autoencoder]\n"
                "calibrate: {ensemble: {members: [pca, window_autoencoder]}}\n",
                "calibrate.ensemble.members",
            ),
            ("detectors: [window_autoencoder]\n", "expected one that scores single rows"),
            ("train: {window_autoencoder: {supervised: {}}}\n", "a window has no failure mode"),
            ("train: {window_autoencoder: {window: 1}}\n", "greater than or equal to 2"),
        ],
    )
    def test_service(self, text: str, told: str) -> None:
        with pytest.raises(ParamsError) as error:
            parse_params(text)
        assert told in str(error.value)

    def test_it_is_no_member_unless_named_and_then_refused(self) -> None:
        params = parse_params("detectors: [pca, vae, window_autoencoder]\n")
        assert params.serving_detectors == ("pca", "vae")
        rule = ensemble_rule(EnsembleParams(), params.detectors)
        assert rule is not None
        assert rule.members == ("pca", "vae")


def test_score_rows_gives_windows_to_those_that_want_them() -> None:
    detector, _ = fitted()
    x, order = two_machines(60, seed=4)
    expected = detector.score(x, codes(x), detector.windows(order))
    tails = TailTables({"window_autoencoder": TailTable.of(expected)})
    scored = score_rows({"window_autoencoder": detector}, rows_of(x, order), tails)
    np.testing.assert_array_equal(scored.raw["window_autoencoder"], expected)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_bfloat16_scores_nearly_as_float32(architecture: str) -> None:
    detector, _ = fitted(architecture, score="residual", residual="mean_squared")
    x, order = two_machines(160, seed=4)
    exact = detector.score(x, codes(x), detector.windows(order))
    detector.precision = "bfloat16"
    np.testing.assert_allclose(detector.score(x, codes(x), detector.windows(order)), exact, rtol=0.15)


def test_a_build_compares_it_and_its_release_holds_it_not(built: Path, tmp_path: Path) -> None:
    for name in ("raw", "status", "models", "base_release"):
        if (built / "data" / name).exists():
            shutil.copytree(built / "data" / name, tmp_path / "data" / name)
    settings = SMALL_PARAMS.replace("  autoencoder:", f"  window_autoencoder: {TINY}\n  autoencoder:")
    (tmp_path / "params.yaml").write_text(f"{settings}detectors: [pca, energy_zscore, window_autoencoder]\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        train("window_autoencoder", load_params(), Path())
        calibrate_stage.main()
        evaluate_stage.main()
        release_stage.main()
    figures = read_json(tmp_path / "metrics/evaluation.json")["detectors"]
    assert set(figures) == {"pca", "energy_zscore", "window_autoencoder", "ensemble"}
    manifest = read_json(tmp_path / "data/release/manifest.json")
    assert manifest["members"] == ["pca", "energy_zscore"]
    assert not (tmp_path / "data/release/detectors/window_autoencoder").exists()
    assert set(load_release(tmp_path / "data/release", device="cpu").detectors) == {"pca", "energy_zscore"}

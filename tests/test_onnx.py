"""The exported file scores as the detector and alarms as the release, with onnxruntime and the JSON beside it alone."""

from __future__ import annotations

import json
import logging
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pyarrow as pa
import pytest
import torch

from flows import cli
from pipeline import onnx_export
from pipeline.detectors import CLASSES, BaselineTable, Detector, Fitting, TrainingRows, fit_baselines, make_detector
from pipeline.detectors.forest import ForestDetector
from pipeline.errors import HearkenError, ReleaseError, UserError
from pipeline.onnx_export import (
    MODEL,
    as_float32,
    compared,
    export_release,
    open_scorer,
    rows_around,
    run_scorer,
    scorer_bytes,
    scorer_model,
)
from pipeline.params import WINDOW_DETECTORS, TrainParams
from pipeline.release import Release, load_release
from pipeline.rows import RowKeys
from pipeline.schema import Baseline, FleetSpec, LimitSpec
from pipeline.score import score_data_set
from pipeline.store import read_table
from pipeline.tails import ScoreScale

BINS, CPU = 16, torch.device("cpu")
MACHINES = ["../a", 'b"\\\x1b[2J', "насос\u202e\x00"]
NETWORK = {"latent": 3, "channels": [4, 8], "restarts": 0, "optimiser": {"max_epochs": 2, "batch_rows": 256}}
LIMITS = LimitSpec(zones=(1.4, 2.8, 4.5), amplitude="rms")
FLEET = FleetSpec(bins=BINS, unit="m/s2", band_edges_hz=tuple(range(5, 2000, 120))[: BINS + 1], limits=LIMITS)
EXPORTED = ("autoencoder", "isolation_forest", "squared_distance")
QUICK = {"score_batch_rows": 256, "autoencoder": NETWORK, "vae": NETWORK, "isolation_forest": {"trees": 20}}


@dataclass(frozen=True)
class Example:
    """A fitted detector, its file, the scale of its scores, and rows to score."""

    detector: Detector
    content: bytes
    scale: ScoreScale
    spectra: np.ndarray
    row: np.ndarray

    @property
    def session(self) -> onnxruntime.InferenceSession:
        return open_scorer(self.content)


def healthy() -> tuple[np.ndarray, BaselineTable, np.ndarray]:
    """Two machines with rows enough, one with few, and three hidden loads that move the bins together."""
    rng = np.random.default_rng(7)
    machine = np.r_[rng.integers(0, 2, 1500), np.full(6, 2)]
    logs = rng.normal(size=(1506, 3)) @ rng.normal(size=(3, BINS)) + rng.normal(size=(3, BINS))[machine]
    spectra = np.exp(logs + 0.2 * rng.normal(size=(1506, BINS))).astype(np.float32)
    keys = RowKeys.of(MACHINES, machine, np.zeros(1506, int))
    table = fit_baselines(spectra, keys)
    return spectra, table, table.codes(keys)


def fitted(name: str, **settings: object) -> tuple[Detector, np.ndarray, np.ndarray]:
    spectra, table, row = healthy()
    params = TrainParams.model_validate(QUICK | ({name: {**QUICK.get(name, {}), **settings}} if settings else {}))
    detector = make_detector(name, table, params, CPU, FLEET)
    detector.fit(TrainingRows(spectra[:1000], row[:1000], spectra[1000:], row[1000:]), Fitting(3, CPU))
    return detector, spectra, row


@pytest.fixture(scope="module")
def examples() -> dict[str, Example]:
    return {}


def example_of(name: str, examples: dict[str, Example]) -> Example:
    """Each detector once."""
    if name not in examples:
        detector, spectra, row = fitted(name)
        scores = detector.score(spectra, row)
        percentiles = np.linspace(0, 99.8, 30)
        level = np.linspace(0.5, 2, len(detector.baselines.location))
        scale = ScoreScale(*(np.percentile(scores * factor, percentiles) for factor in (0.3, 0.6, 1)), level)
        content = scorer_bytes(scorer_model(detector, scale=scale, release="0123456789abcdef"))
        examples[name] = Example(detector, content, scale, spectra, row)
    return examples[name]


@pytest.fixture(params=[name for name in CLASSES if name not in WINDOW_DETECTORS])
def example(request: pytest.FixtureRequest, examples: dict[str, Example]) -> Example:
    return example_of(request.param, examples)


def assert_same_scores(got: np.ndarray, expected: np.ndarray) -> None:
    """Within 1e-4 of a score, or of 1 where it is smaller: beside zero, float32's own rounding is all there is."""
    assert got.dtype == np.float32
    assert got.shape == expected.shape
    assert (np.abs(got - expected) <= 1e-4 * np.maximum(1, np.abs(expected))).all(), np.abs(got / expected - 1).max()


@pytest.mark.parametrize("rows", [1, 7, 4096])
def test_any_number_of_rows_scores_as_in_torch(example: Example, rows: int) -> None:
    spectra, row = np.resize(example.spectra, (rows, BINS)), np.resize(example.row, rows)
    expected = example.detector.score(spectra, row)
    score, comparable = run_scorer(example.session, spectra, row)
    assert_same_scores(score, expected)
    states = example.detector.baselines.states(row)
    assert_same_scores(comparable, example.scale.comparable(expected, states, row))


def test_every_baseline_and_the_far_ends_of_a_spectrum(example: Example) -> None:
    near, row = rows_around(example.detector)
    assert set(example.detector.baselines.states(row)) == {Baseline.FLEET, Baseline.SHRUNK, Baseline.OWN}
    far = np.array([0, 1e-38, 1e-12, 1e3, 1e9, 1e18], np.float32)[:, None] * np.ones(BINS, np.float32)
    one_hot = np.eye(BINS, dtype=np.float32) * 1e6
    spectra = np.concatenate([near, far, one_hot, example.spectra[:50] * 1e4])
    row = np.resize(row, len(spectra))
    expected = example.detector.score(spectra, row)
    score, comparable = run_scorer(example.session, spectra, row)
    assert_same_scores(score, expected)
    assert_same_scores(comparable, example.scale.comparable(expected, example.detector.baselines.states(row), row))


def test_a_spectrum_that_is_none_scores_nan_and_its_neighbours_do_not(example: Example) -> None:
    spectra, row = example.spectra[:6].copy(), example.row[:6]
    spectra[1, 3], spectra[2, 0], spectra[3, 5], spectra[4] = np.nan, np.inf, -1e-3, 3e38
    for got in run_scorer(example.session, spectra, row):
        np.testing.assert_array_equal(np.isnan(got), [False, True, True, True, True, False])


def test_other_bins_and_rows_beyond_the_table_are_refused(example: Example) -> None:
    session, spectra = example.session, example.spectra[:2]
    for bins in (BINS - 1, BINS + 1):
        with pytest.raises(Exception, match=r"INVALID_ARGUMENT|invalid dimensions"):
            run_scorer(session, np.ones((2, bins), np.float32), example.row[:2])
    for row in (-1, len(example.detector.baselines.location), 2**40):
        with pytest.raises(Exception, match=r"INVALID_ARGUMENT|out of"):
            run_scorer(session, spectra, np.array([0, row]))


def test_the_file_is_whole_and_tells_what_it_is(example: Example) -> None:
    model = onnx.load_model_from_string(example.content)
    onnx.checker.check_model(model, full_check=True)
    assert not any(tensor.external_data for tensor in model.graph.initializer)
    shapes = {
        value.name: [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert shapes == {"spectrum": ["N", BINS], "baseline_row": ["N"], "score": ["N"], "comparable": ["N"]}
    told = {item.key: item.value for item in model.metadata_props}
    assert told["hearken.detector"] == example.detector.name
    assert (told["hearken.bins"], told["hearken.release"]) == (str(BINS), "0123456789abcdef")
    assert told["hearken.baselines"].isascii()
    keys = json.loads(told["hearken.baselines"])["keys"]
    assert [tuple(key) for key in keys] == list(example.detector.baselines.keys)
    assert {key[0] for key in keys} == set(MACHINES)
    for place in (b"/", str(Path(__file__).parents[1]).encode(), b"site-packages", b"stack_trace"):
        assert place not in example.content.replace(told["hearken.baselines"].encode(), b"") or place == b"/"


@pytest.mark.parametrize("name", ["pca", "isolation_forest"])
def test_a_second_export_gives_the_same_bytes_and_says_nothing(
    name: str, examples: dict[str, Example], capfd: pytest.CaptureFixture[str]
) -> None:
    first = example_of(name, examples)
    logger, filters = logging.getLogger("torch.onnx"), list(warnings.filters)
    logger.setLevel(logging.INFO)
    capfd.readouterr()
    try:
        second = scorer_bytes(scorer_model(fitted(name)[0], scale=first.scale, release="0123456789abcdef"))
        assert logger.level == logging.INFO
    finally:
        logger.setLevel(logging.NOTSET)
    assert warnings.filters == filters
    assert capfd.readouterr() == ("", "")
    assert second == first.content


def test_the_trees_of_a_forest_are_walked_alike_by_onnxruntime_and_torch() -> None:
    detector, spectra, row = fitted("isolation_forest", sample_rows=400)
    relative = detector.relative(np.concatenate([spectra, spectra * 30]), np.r_[row, row])
    assert isinstance(detector, ForestDetector)
    np.testing.assert_allclose(detector.path_lengths(relative), detector.walked_lengths(relative), rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("autoencoder", {"architecture": "dense", "activation": "tanh", "residual": "mean_squared", "score": "latent"}),
        ("vae", {"architecture": "dense", "activation": "relu", "score": "elbo", "draws": 2, "loss": "gaussian"}),
    ],
)
def test_other_networks_and_scores(name: str, settings: dict[str, object]) -> None:
    detector, spectra, row = fitted(name, **settings)
    got, _ = run_scorer(open_scorer(scorer_bytes(scorer_model(detector))), spectra, row)
    assert_same_scores(got, detector.score(spectra, row))


def test_a_detector_in_bfloat16_is_written_in_float32() -> None:
    spectra, table, row = healthy()
    detector = make_detector("autoencoder", table, TrainParams.model_validate(QUICK), CPU)
    detector.precision = "bfloat16"
    detector.fit(TrainingRows(spectra[:1000], row[:1000], spectra[1000:], row[1000:]), Fitting(3, CPU))
    content = scorer_bytes(scorer_model(detector))
    got, _ = run_scorer(open_scorer(content), spectra, row)
    in_float32 = as_float32(detector).score(spectra, row)
    assert_same_scores(got, in_float32)
    assert np.abs(detector.score(spectra, row) / in_float32 - 1).max() > 1e-4  # else the precision would be ignored
    assert compared(detector, content).largest > 1e-4


def test_what_no_onnx_file_can_hold_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    detector, _, _ = fitted("pca")
    monkeypatch.setattr(onnx_export, "LARGEST_FILE", 2 * detector.baselines.location.nbytes)
    with pytest.raises(ReleaseError, match=r"got pca with .* GiB of weights and baselines, expected below 2 GiB"):
        scorer_model(detector)


def test_a_file_that_scores_otherwise_is_refused(examples: dict[str, Example]) -> None:
    detector, other = (example_of(name, examples) for name in ("squared_distance", "energy_zscore"))
    with pytest.raises(HearkenError, match="scores of squared_distance that differ"):
        compared(detector.detector, other.content)


@pytest.fixture(scope="module")
def release(built: Path) -> Release:
    return load_release(built / "data/release", device="cpu")


@pytest.fixture(scope="module")
def exported(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some members of the small fleet's release, by the command, in a folder that was empty."""
    out = tmp_path_factory.mktemp("edge")
    chosen = ["--detector", EXPORTED[0], "--detector", ", ".join([*EXPORTED[1:], EXPORTED[1]])]
    with pytest.MonkeyPatch.context() as patch:
        assert run_cli(patch, "--release", str(built / "data/release"), "--out", str(out), *chosen) == 0
    return out


def run_cli(patch: pytest.MonkeyPatch, *arguments: str) -> int:
    patch.setattr(sys, "argv", ["hearken", "export", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return int(stopped.value.code or 0)


def rows_of(told: dict, log: pa.Table) -> np.ndarray:
    """The row of the baseline table for each row of a score log, looked up as a device would."""
    baselines = told["baselines"]
    known = {(line["machine_id"], line["epoch"], line["condition"]): line["row"] for line in baselines["machines"]}
    keys = zip(log["machine_id"].to_pylist(), log["epoch"].to_pylist(), log["condition"].to_pylist(), strict=True)
    fleet = baselines["fleet_in_condition"]
    return np.array(
        [
            known.get((name, epoch, mode), known.get((name, -1, mode), fleet.get(mode, baselines["fleet"])))
            for name, epoch, mode in keys
        ]
    )


def test_a_device_alarms_on_the_rows_that_the_release_alarms_on(
    built: Path, release: Release, exported: Path, tmp_path: Path
) -> None:
    score_data_set(release, built / "data/raw", tmp_path)
    files = [path.relative_to(exported).as_posix() for path in exported.rglob("*") if path.is_file()]
    assert sorted(files) == sorted(f"{name}/scorer.{kind}" for name in EXPORTED for kind in ("json", "onnx"))
    days = sorted(tmp_path.glob("*.parquet"))
    raw = [read_table(built / "data/raw/spectra" / path.name) for path in days]
    log = pa.concat_tables([read_table(path) for path in days]).unify_dictionaries()
    modes = pa.chunked_array([chunk for table in raw for chunk in table["condition"].cast(pa.string()).chunks])
    log = log.append_column("condition", modes)
    spectra = np.concatenate([np.stack(table["spectrum"].to_pylist()).astype(np.float32) for table in raw])
    alarms = 0
    for name in EXPORTED:
        told = json.loads((exported / name / "scorer.json").read_text())
        score, comparable = run_scorer(open_scorer(exported / name / MODEL), spectra, rows_of(told, log))
        states = np.array([Baseline[state.upper()] if state else 0 for state in log["baseline"].to_pylist()])
        in_release = log[f"score_{name}"].to_numpy(zero_copy_only=False)
        baseline_row = rows_of(told, log).astype(np.int32)
        in_release = release.tails.table(name).scale.comparable(in_release, states, baseline_row)
        usable = np.isfinite(in_release)
        np.testing.assert_array_equal(np.isnan(score), ~usable)
        closest = 1e-5 if told["precision"]["release"] == "float32" else 0.1
        for tier in ("low", "page"):
            threshold = told["tiers"][tier]["exceeds"]
            clear = usable & (np.abs(in_release - threshold) > closest * np.abs(threshold))
            assert clear.mean() > 0.7
            alarms += int((in_release > threshold)[clear].sum())
            np.testing.assert_array_equal((comparable > threshold)[clear], (in_release > threshold)[clear])
        assert told["raises_alerts"] == (name == release.detector)
        assert (told["release"], told["policy"]) == (release.id, release.calibration["policy"])
    assert alarms, "nothing was compared"


def test_what_is_there_is_never_touched(release: Release, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "kept").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("full", "file", "link"):
        with pytest.raises(UserError, match=f"got .*{name}, where something is already, expected a new or an empty"):
            export_release(release, tmp_path / name)
    with pytest.raises(UserError, match="which is inside the release"):
        export_release(release, release.folder / "edge", ["pca"])
    assert not (release.folder / "edge").exists()
    with pytest.raises(UserError, match=r"got oracle, expected members of release .*: autoencoder"):
        export_release(release, tmp_path / "new", ["pca", "oracle"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "full", "link"]
    assert (tmp_path / "full" / "kept").read_text() == (tmp_path / "file").read_text() == "mine"


def test_without_a_release_in_service_the_command_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("dvc.yaml", "params.yaml"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HEARKEN_DATABASE_URL", raising=False)
    monkeypatch.setenv("HEARKEN_HOME", str(tmp_path / "home"))
    assert run_cli(monkeypatch, "--out", str(tmp_path / "out")) == ReleaseError.exit_code
    assert "no release is in service" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()

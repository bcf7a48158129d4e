"""benchmarks/known_results: what its figures mean, and that every script ends with one JSON object."""

from __future__ import annotations

import doctest
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from pipeline.detectors import Fitting, TrainingRows, fit_baselines
from pipeline.detectors.neural import AutoencoderDetector
from pipeline.params import AutoencoderParams
from pipeline.rows import RowKeys

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # benchmarks are not installed

from benchmarks.known_results import coders, denoising, digits, labelled, labels, mnist_codings, slope  # noqa: E402

CPU = torch.device("cpu")


# images


@pytest.mark.parametrize("side", [2, 6])
def test_a_pixel_is_white_on_the_side_of_the_normal(side: int) -> None:
    angles = np.array([0.1, 1.2, 3.0, 5.5])
    images = slope.line_images(angles, side).reshape(len(angles), side, side)
    for image, angle in zip(images, angles, strict=True):
        for row in range(side):
            for column in range(side):
                x, y = column - (side - 1) / 2, (side - 1) / 2 - row
                assert bool(image[row, column]) == (x * np.cos(angle) + y * np.sin(angle) > 0)
        assert image.sum() == side * side / 2


def test_there_are_four_images_of_two_by_two() -> None:
    every = slope.line_images(np.random.default_rng(0).uniform(0, 2 * np.pi, 500), 2)
    assert {tuple(image.tolist()) for image in every} == {tuple(image.tolist()) for image in slope.four_images()}
    assert len(slope.four_images().unique(dim=0)) == 4


def test_a_defect_turns_a_square_of_pixels_and_spares_the_original() -> None:
    images = slope.line_images(np.linspace(0.1, 6, 20), 8)
    before = images.clone()
    assert ((slope.with_defect(images, 3, np.random.default_rng(0)) - images).abs().sum(1) == 9).all()
    assert torch.equal(images, before)


@pytest.mark.parametrize(
    ("groups", "name"),
    [
        ([[0], [1], [2], [3]], "right"),
        ([[0, 1], [2], [3]], "two averaged"),
        ([[0, 1], [2, 3]], "two pairs"),
        ([[0, 1, 2], [3]], "three averaged"),
        ([[0, 1, 2, 3]], "all grey"),
    ],
)
def test_outcomes_are_told_by_which_images_share_an_output(groups: list[list[int]], name: str) -> None:
    images = slope.four_images()
    output = images.clone()
    for group in groups:
        output[group] = images[group].mean(0)
    assert slope.outcome(output, images) == name
    assert slope.outcome(1 - output, images) == ("other" if name not in ("two pairs", "all grey") else name)


# networks that train at once


def test_networks_that_train_at_once_do_not_see_each_other() -> None:
    images = slope.four_images()
    together, alone = (slope.Networks.of(seeds, 4, 4, None) for seeds in ([1, 2, 3], [2]))
    for networks in (together, alone):
        slope.train(networks, images, steps=30, batch=4, rate=0.02, seed=5)
    for name, value in alone.parameters.items():
        torch.testing.assert_close(together.parameters[name][1], value[0], rtol=1e-4, atol=1e-6)


def test_dead_networks_are_found_and_replaced() -> None:
    images, networks = slope.four_images(), slope.Networks.of([1, 2], 4, 16, None)
    for value in networks.parameters.values():
        value[0] = 0
    assert slope.dead(networks, images).tolist() == [True, False]
    networks.replace([0], slope.Networks.of([3], 4, 16, None))
    assert slope.dead(networks, images).tolist() == [False, False]


def test_a_variational_network_pays_for_codes_that_leave_the_prior() -> None:
    images = slope.four_images()
    paying, free = (slope.Networks.of([1], 4, 4, beta) for beta in (2.0, 0.0))
    mean, log_variance = free(images)[1:]
    divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(2).mean(1)
    torch.testing.assert_close(
        slope.losses(paying, images, None) - slope.losses(free, images, None), 2 * divergence, rtol=1e-4, atol=1e-5
    )


# sparse and labelled codes


def test_the_gradient_of_the_sparsity_is_that_by_hand() -> None:
    codes = torch.tanh(torch.randn(7, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    codes.requires_grad_()
    coders.sparsity(codes, -0.1).backward()
    wanted, share = 0.45, (1 + codes.detach().mean(0)) / 2
    by_hand = (-wanted / share + (1 - wanted) / (1 - share)) / 2 / len(codes)
    assert codes.grad is not None
    torch.testing.assert_close(codes.grad, by_hand.expand(7, 3))


def test_the_sparsity_moves_the_average_activation_to_its_target() -> None:
    rows = torch.rand(400, 8, generator=torch.Generator().manual_seed(0))
    found = {}
    for target in (-0.1, -0.75):
        coder = coders.Coder([8, 6], "tanh", code_activation="tanh", seed=1)
        loss = mnist_codings.sparse_loss(coder, 5.0, target)
        coders.fit(coder, loss, rows, rows[:50], coders.optimiser(40, learning_rate=0.02, batch_rows=64), 1)
        found[target] = float(coders.in_parts(coder.code, rows).mean())
    assert found == pytest.approx({-0.1: -0.1, -0.75: -0.75}, abs=0.03)


def test_a_target_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match=r"got target=1\.5, expected -1 < target < 1"):
        coders.sparsity(torch.zeros(2, 2), 1.5)


def test_a_head_changes_neither_the_first_weights_nor_learns_without_labels() -> None:
    without, with_head = (coders.Coder([6, 4, 2], "relu", head=head, seed=3) for head in ((), (5, 3)))
    for name, value in without.state_dict().items():
        torch.testing.assert_close(with_head.state_dict()[name], value)
    rows = labels.with_digit(torch.rand(5, 6), torch.tensor([0, 1, 2, 0, 1]))
    labels.reconstruction_and_labels(with_head, 1.0)(rows, 1, None)["loss"].backward()
    assert with_head.head is not None
    assert all(weight.grad is None for weight in with_head.head.parameters())
    labels.reconstruction_and_labels(with_head, 0.5)(rows, 1, None)["loss"].backward()
    assert all(weight.grad is not None for weight in with_head.head.parameters())


@pytest.fixture(scope="module")
def machine() -> tuple[TrainingRows, object, np.ndarray]:
    """A machine of 16 bins; rows before its failures have bins 3 and 4 a little louder."""
    rng = np.random.default_rng(4)
    loads = rng.normal(size=(1800, 3)) @ rng.normal(size=(3, 16))
    spectra = np.exp(loads + 0.3 * rng.normal(size=loads.shape)).astype(np.float32)
    louder = spectra * np.where(np.isin(np.arange(16), (3, 4)), 2.0, 1.0).astype(np.float32)
    keys = RowKeys.of(["pump"], np.zeros(1800, int), np.zeros(1800, int))
    table = fit_baselines(spectra, keys)
    code = table.codes(keys)
    return TrainingRows(spectra[:1200], code[:1200], spectra[1200:1500], code[1200:1500]), table, louder


def trained(kind: type[AutoencoderDetector], machine, faulty: np.ndarray | None = None) -> AutoencoderDetector:
    rows, table, _ = machine
    optimiser = {"max_epochs": 12, "patience": 12, "batch_rows": 128, "learning_rate": 0.01}
    values = {"architecture": "dense", "layers": (12,), "latent": 4, "optimiser": optimiser}
    detector = kind(table, 256, params=AutoencoderParams.model_validate(values))
    if faulty is not None:
        assert isinstance(detector, labelled.LabelledAutoencoder)
        detector.knows(detector.relative(faulty, np.zeros(len(faulty), np.int32))[:, :-1])
    detector.fit(rows, Fitting(1, CPU))
    return detector


def test_without_labels_it_is_the_autoencoder_of_the_project(machine) -> None:
    rows = machine[0]
    scores = [
        trained(kind, machine).score(rows.validation, rows.validation_code)
        for kind in (AutoencoderDetector, labelled.LabelledAutoencoder)
    ]
    np.testing.assert_array_equal(*scores)


def test_the_head_knows_faults_like_those_it_learned(machine) -> None:
    rows, _, louder = machine
    detector = trained(labelled.LabelledAutoencoder, machine, louder[:60])
    assert isinstance(detector, labelled.LabelledAutoencoder)
    fresh = np.concatenate([rows.validation, louder[1500:]])
    suspicion = detector.suspicion(detector.relative(fresh, np.zeros(len(fresh), np.int32))[:, :-1])
    assert (suspicion >= 0).all()
    assert labels.separated(suspicion[:300], suspicion[300:]) > 0.8


# who is compared with whom


def test_differences_are_paired_and_told_by_mode() -> None:
    auroc = [{"plain": 0.5, "head/few": 0.5 + step} for step in (0.1, 0.3, -0.1)]
    found = labels.Pairs(auroc, ["a", "a", "b"], {"few": [True, True, False]}).against_plain("head/few", 1)
    assert found["difference"] == 0.1
    assert found["higher_for"] == "2 of 3"
    assert found["interval"] == [-0.1, 0.2]  # of groups: only b, only a
    assert found["modes_labelled"] == {"failures": 2, "difference": 0.2, "interval": None}
    assert found["other_modes"] == {"failures": 1, "difference": -0.1, "interval": None}


def test_waves_are_noisy_and_the_best_smoother_is_chosen_elsewhere() -> None:
    rng = np.random.default_rng(0)
    training, choice = (denoising.waves(["sine"], count, rng) for count in (800, 200))
    assert float((training.noisy - training.clean).std()) == pytest.approx(0.3, abs=0.01)
    candidates = {"none": lambda rows: rows, "nothing": lambda rows: 0 * rows}
    assert denoising.chosen(candidates, choice)[0] == "none"
    mapped = denoising.linear_map(training, 1.0)(choice.noisy)
    assert denoising.wave_errors(mapped, choice).mean() < 0.5 * denoising.wave_errors(choice.noisy, choice).mean()


def test_every_linear_smoother_leaves_a_constant_alone() -> None:
    rows = np.full((2, 64), 0.7, np.float32)
    for name, smoother in denoising.smoothers().items():
        np.testing.assert_allclose(smoother(rows), rows, rtol=1e-4, err_msg=name)


# digits


@pytest.fixture
def no_recordings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HEARKEN_REAL_DATA", str(tmp_path))
    return tmp_path


def test_without_mnist_the_small_digits_stand_in_and_say_so(no_recordings: Path) -> None:
    found = digits.read_digits(None, None, 1)
    assert "scikit-learn" in found.source
    assert (len(found.train), len(found.test), found.pixels) == (1198, 599, 64)
    # no two of its 1,797 images are the same: none that judges trains
    assert len(torch.cat([found.train, found.test]).unique(dim=0)) == 1797
    fits, held = found.fitting()
    assert not (fits & held).any()
    assert (fits | held).all()


def test_mnist_keeps_its_own_split(no_recordings: Path) -> None:
    frame = pd.DataFrame({"digit": np.arange(8, dtype=np.int8), "split": ["train"] * 5 + ["test"] * 3})
    for pixel in range(4):
        frame[f"f_{pixel:03}"] = np.full(8, 51, np.uint8)
    frame.to_parquet(no_recordings / "mnist.parquet")
    found = digits.read_digits(3, None, 1)
    assert found.source == "MNIST"
    assert set(found.train_digit.tolist()) < {0, 1, 2, 3, 4}
    assert len(found.train) == 3
    assert sorted(found.test_digit.tolist()) == [5, 6, 7]
    torch.testing.assert_close(found.train, torch.full((3, 4), 0.2))


# scripts


@pytest.mark.parametrize("module", [coders, denoising, digits, labelled, labels, mnist_codings, slope])
def test_examples_are_true(module) -> None:
    assert doctest.testmod(module).failed == 0


def last_line(script, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *more: str) -> dict:
    monkeypatch.setattr(sys, "argv", [script.__name__, "--quick", *more])
    script.main()
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["quick"] is True
    return result


def test_slope_ends_with_its_figures(capsys, monkeypatch) -> None:
    result = last_line(slope, capsys, monkeypatch)
    for both in result["images_32"].values():
        assert {"code_mean", "code_deviation", "deviation_of_one", "error", "wrong_pixels"} <= set(both["variational"])
        assert set(both["classical"]["auroc"]) == {"defect", "no_line"}
    assert len(result["images_2"]) == 3 * 2 * 2  # kinds, widths, without and with restarts
    for shares in result["images_2"].values():
        assert sum(shares[name] for name in slope.OUTCOMES) == pytest.approx(1)


def test_mnist_codings_end_with_their_figures(capsys, monkeypatch, no_recordings: Path) -> None:
    result = last_line(mnist_codings, capsys, monkeypatch)
    assert {name: of["published"] for name, of in result["stacks"].items()} == {
        "100": 0.0067,
        "300-100-300": 0.0083,
        "100-50-100": 0.0112,
        "50": 0.0125,
        "250-100-50-100-250": 0.0144,
    }
    assert set(result["denoising"]) == {"masked", "gaussian"}
    assert len(result["sparse"]) == 6
    assert len(result["errors"]["worst"]) == 5
    assert set(result["two_numbers"]) > {"PCA"}


def test_denoising_ends_with_its_figures(capsys, monkeypatch) -> None:
    result = last_line(denoising, capsys, monkeypatch)
    for shapes in ("sines", "mixed"):
        assert result[shapes]["error"]["noise"] == pytest.approx(0.09, abs=0.01)
        assert len(result[shapes]["against"]) == 3


def test_labels_end_with_their_figures(capsys, monkeypatch, no_recordings: Path) -> None:
    bearings(no_recordings / "femto_h.parquet")
    result = last_line(labels, capsys, monkeypatch)
    assert {"with labels", "without labels"} <= set(result["mnist"]["code of 16"])
    ways = {"plain", *(f"{way}/{amount}" for way in labelled.WAYS[1:] for amount in ("few", "all"))}
    assert set(result["fleet"]["ways"]) == ways == set(result["femto_h"]["ways"])
    assert result["fleet"]["ways"]["plain"]["difference"] == 0
    assert result["fleet"]["failures"] > 0
    assert list(result["femto_h"]["ways"]["plain"]["by_bearing"]) == ["b1", "b2"]


def test_labels_without_recordings_say_why(capsys, monkeypatch, no_recordings: Path) -> None:
    result = last_line(labels, capsys, monkeypatch, "--parts", "femto")
    assert result["femto_h"]["ways"] is None
    assert "no femto_h.parquet" in result["femto_h"]["reason"]


def bearings(path: Path) -> None:
    """Three short lives as the recordings have them; the last tenth of each is louder."""
    rng, parts = np.random.default_rng(1), []
    for name in ("b1", "b2", "b3"):
        life = np.arange(300) / 300
        spectra = np.exp(rng.normal(0, 0.2, (300, 16))) * np.where(life[:, None] >= 0.9, 2.0, 1.0)
        frame = pd.DataFrame(spectra.astype(np.float32), columns=[f"bin_{number:02}" for number in range(16)])
        label = np.where(life < 0.5, 0, np.where(life >= 0.9, 1, -1)).astype(np.int8)
        times = pd.Timestamp("2000-01-01") + pd.to_timedelta(10 * np.arange(300), unit="s")
        parts.append(frame.assign(machine_id=name, timestamp=times, label=label, life_frac=life, condition="c"))
    pd.concat(parts).to_parquet(path)

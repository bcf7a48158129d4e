"""What holds a code beside its width, each against an independent computation, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_neural import BINS, CPU, LONG, QUICK, codes, make, plain_baselines, plant, score

from pipeline.detectors import Fitting, TaughtRows, TrainingRows, load_detector
from pipeline.detectors.codes import Lessons, projected_contraction, sparsity, winners
from pipeline.detectors.neural import AutoencoderDetector
from pipeline.errors import ParamsError, ReleaseError
from pipeline.onnx_export import compared, scorer_bytes, scorer_model
from pipeline.params import AutoencoderParams, parse_params

OBJECTIVES: dict[str, dict[str, Any]] = {
    "sparse": {"sparse": {"beta": 0.5, "target": 0.2}},
    "sparse tanh": {"sparse": {"beta": 0.5, "target": -0.5}, "code_activation": "tanh"},
    "contractive": {"contractive": {"weight": 0.05}},
    "contractive, one layer": {"contractive": {"weight": 0.05}, "layers": []},
    "sparse and contractive": {"sparse": {}, "contractive": {"projections": 2}, "noise": {"masking": 0.1}},
    "winner_take_all": {"winner_take_all": {"share": 0.1}},
}


def draws(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def lesson_rows() -> TaughtRows:
    """Two failures of one mode and one of another, told apart by the bin that rises."""
    x = plant(120, seed=31)
    mode, failure = np.repeat([0, 0, 1], 40), np.repeat([0, 1, 2], 40)
    x[np.arange(120), np.where(mode == 0, 3, 11)] += 4.0
    return TaughtRows(x, codes(x), failure, mode, ("imbalance", "outer_race"))


def fitted(
    name: str = "autoencoder", taught: TaughtRows | None = None, fitting: Fitting | None = None, **settings: Any
):
    detector = make(name, **settings)
    x, later = plant(), plant(300, seed=9)
    rows = TrainingRows(x, codes(x), later, codes(later), taught=taught)
    return detector, detector.fit(rows, fitting or Fitting(3, CPU))


class TestSparsity:
    @pytest.mark.parametrize(("activation", "low"), [("sigmoid", 0.0), ("tanh", -1.0)])
    def test_is_the_divergence_of_two_coins(self, activation: str, low: float) -> None:
        code = torch.rand(50, 3, generator=draws(), dtype=torch.float64) * (1 - low) + low
        target = 0.1
        expected = 0.0
        for mean in code.mean(0).tolist():
            q, p = ((mean - low) / (1 - low), (target - low) / (1 - low))
            expected += p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
        assert float(sparsity(activation, code, target)) == pytest.approx(expected)

    def test_a_number_that_is_never_on_costs_much_and_not_everything(self) -> None:
        assert 0.1 < float(sparsity("sigmoid", torch.zeros(5, 1), 0.05)) < 10

    @pytest.mark.parametrize("target", [0.05, 0.3])
    def test_training_brings_the_mean_to_its_target(self, target: float) -> None:
        detector, _ = fitted(sparse={"beta": 20.0, "target": target}, optimiser=LONG | {"max_epochs": 30})
        with torch.inference_mode():
            mean = detector.code(torch.from_numpy(plant())).mean(0)
        np.testing.assert_allclose(mean, target, atol=0.3 * target)


class TestContraction:
    @pytest.mark.parametrize("activation", ["identity", "sigmoid", "tanh", "relu"])
    def test_one_layer_is_exact(self, activation: str) -> None:
        detector = make("autoencoder", layers=[], contractive={}, code_activation=activation)
        detector.build()
        assert detector.compiles
        self.compare(detector, rtol=1e-5)

    def test_deeper_ones_are_estimated_without_bias(self) -> None:
        detector = make("autoencoder", layers=[12], contractive={"projections": 3000 // 50})
        detector.build()
        assert not detector.compiles
        x = torch.from_numpy(plant(8, seed=5))
        got = torch.stack([detector._contracted(x, 60, draws(seed))[1].detach() for seed in range(50)]).mean(0)
        np.testing.assert_allclose(got, self.exact(detector, x), rtol=0.1)

    def compare(self, detector: AutoencoderDetector, rtol: float) -> None:
        x = torch.from_numpy(plant(8, seed=5))
        np.testing.assert_allclose(detector._contracted(x, 1, None)[1].detach(), self.exact(detector, x), rtol=rtol)

    def exact(self, detector: AutoencoderDetector, x: torch.Tensor) -> np.ndarray:
        rows = [torch.autograd.functional.jacobian(lambda row: detector.code(row[None])[0], row) for row in x]
        return torch.stack(rows).square().sum((1, 2)).numpy()

    def test_the_estimate_itself_has_the_right_gradient(self) -> None:
        weight = torch.randn(2, 3, generator=draws(), dtype=torch.float64, requires_grad=True)
        x = torch.ones(400, 3, dtype=torch.float64, requires_grad=True)
        norm = projected_contraction((x @ weight.T), x, 200, draws(2), differentiable=True).mean()
        (gradient,) = torch.autograd.grad(norm, weight)
        np.testing.assert_allclose(gradient, 2 * weight.detach(), atol=0.05)

    @pytest.mark.parametrize("layers", [[], [12]])
    def test_training_contracts(self, layers: list[int]) -> None:
        norms = {}
        for weight in (1e-9, 20.0):
            detector, history = fitted(contractive={"weight": weight}, layers=layers, optimiser=LONG)
            assert {"reconstruction", "contraction"} <= set(history["epochs"][-1])
            norms[weight] = float(self.exact(detector, torch.from_numpy(plant(20, seed=4))).mean())
        assert norms[20.0] < 0.5 * norms[1e-9]

    def test_an_evaluation_always_has_the_same_projections(self) -> None:
        detector = make("autoencoder", contractive={})
        detector.build()
        with torch.inference_mode():
            x = torch.from_numpy(plant(20)).clone()
            first, again = (float(detector.loss(x, 1, None)["loss"]) for _ in range(2))
        assert first == again


class TestWinners:
    def test_as_many_rows_keep_each_number_as_the_share_says(self) -> None:
        code = torch.rand(200, 7, generator=draws())
        kept = winners(code, 0.1)
        assert (kept > 0).sum(0).tolist() == [20] * 7
        assert bool(((kept == 0) | (kept == code)).all())
        assert kept.max(0).values.tolist() == code.max(0).values.tolist()
        assert (winners(code[:3], 0.1) > 0).sum(0).tolist() == [1] * 7  # at least one

    def test_scores_have_the_sparsity_of_training_row_by_row(self) -> None:
        detector, _ = fitted(winner_take_all={"share": 0.1}, latent=6, optimiser=LONG)
        x = torch.from_numpy(plant())
        with torch.inference_mode():
            together, alone = detector.code(x), torch.cat([detector.code(row[None]) for row in x[:50]])
        np.testing.assert_allclose(together[:50], alone, atol=1e-6)
        assert int((together > 0).sum(0).max()) == len(x) // 10


class TestLessons:
    def test_a_draw_is_even_over_modes_then_failures(self) -> None:
        failure = np.repeat([5, 6, 9], [300, 10, 40])
        mode = np.repeat([0, 0, 1], [300, 10, 40])
        order = np.random.default_rng(0).permutation(350)
        lessons = Lessons.of(
            torch.from_numpy(failure[order, None].astype(np.float32)), failure[order], mode[order], ("a", "b")
        )
        rows, modes = lessons.draw(draws(), 8000)
        shares = [float((rows[:, 0] == number).float().mean()) for number in (5, 6, 9)]
        np.testing.assert_allclose(shares, [0.25, 0.25, 0.5], atol=0.03)
        assert ((rows[:, 0] == 9) == (modes == 1)).all()

    @pytest.mark.parametrize("name", ["autoencoder", "vae"])
    def test_the_head_tells_modes_of_rows_it_never_saw(self, name: str, tmp_path: Path) -> None:
        detector, history = fitted(name, lesson_rows(), supervised={"alpha": 1.0}, optimiser=LONG, latent=5)
        assert history["taught"]["failures"] == 3
        assert history["taught"]["modes"] == ["imbalance", "outer_race"]
        assert "modes" in history["epochs"][-1]
        x = plant(60, seed=77)
        x[:, 11] += 4.0
        detector.save(tmp_path)
        both = (detector, load_detector(tmp_path))
        told, again = (each._mode_logits(each.relative(x, codes(x))[:, :-1]) for each in both)
        assert float((told.argmax(1) == 1).double().mean()) > 0.9
        assert torch.equal(told, again)

    def test_rows_without_a_mode_are_masked_and_rows_with_one_are_not_reconstructed(self) -> None:
        detector = make("autoencoder", supervised={"alpha": 2.0})
        rows = lesson_rows()
        x = plant(64)
        detector._take_lessons(TrainingRows(x, codes(x), x, codes(x), taught=rows))
        detector.build()
        batch = torch.from_numpy(x)
        terms = detector.loss(batch, 1, draws(5))
        plain = make("autoencoder")
        plain.network = detector.network
        alone = plain.loss(batch, 1, draws(5))["loss"]
        features, mode = detector._lessons.draw(draws(5))
        logits = detector.network.mode_head(detector.code(features)).double()
        expected = -logits.log_softmax(1)[torch.arange(len(mode)), mode].mean()
        assert float(terms["modes"].detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
        assert float(terms["loss"].detach()) == pytest.approx(float((alone + 2 * expected).detach()), rel=1e-5)
        assert set(detector.loss(batch, 1, None)) == {"loss"}  # an evaluation sees no failure

    def test_one_mode_teaches_nothing_and_says_so(self) -> None:
        rows = lesson_rows()
        one = TaughtRows(rows.spectra, rows.code, rows.failure, np.zeros(120, int), ("imbalance",))
        for taught, told in ((one, "1 failure modes"), (None, "0 failure modes")):
            _, history = fitted(taught=taught, supervised={})
            assert any(
                "train.autoencoder.supervised teaches nothing" in text and told in text for text in history["warnings"]
            )
            assert "taught" not in history

    def test_weights_that_failures_taught_start_no_network_that_lets_them_choose(self, tmp_path: Path) -> None:
        detector, _ = fitted(taught=lesson_rows(), supervised={})
        detector.save(tmp_path)
        with pytest.raises(ReleaseError, match=r"supervised.failures: got None, expected 0.5"):
            fitted(fitting=Fitting(3, CPU, base=tmp_path))
        _, history = fitted(taught=lesson_rows(), supervised={"alpha": 3.0}, fitting=Fitting(3, CPU, base=tmp_path))
        assert history["fine_tuned"]


class TestEveryObjective:
    @pytest.mark.parametrize("objective", OBJECTIVES)
    def test_is_deterministic_and_comes_back_from_disk_and_as_onnx(self, objective: str, tmp_path: Path) -> None:
        settings = {"optimiser": LONG} | OBJECTIVES[objective]
        detector, history = fitted(**settings)
        losses = [epoch["validation_loss"] for epoch in history["epochs"]]
        assert min(losses) < losses[0]
        x = plant(100, seed=7)
        expected = score(detector, x)
        again, _ = fitted(**settings)
        np.testing.assert_array_equal(score(again, x), expected)
        np.testing.assert_allclose(detector.explain(x, codes(x)).sum(1), expected, rtol=1e-9)
        detector.save(tmp_path)
        loaded = load_detector(tmp_path)
        np.testing.assert_array_equal(loaded.score(x, codes(x)), expected)
        assert compared(loaded, scorer_bytes(scorer_model(loaded))).largest < 1e-2

    @pytest.mark.parametrize("objective", [*OBJECTIVES, "supervised"])
    def test_goes_on_from_its_checkpoint_to_the_same_bits(self, objective: str, tmp_path: Path) -> None:
        settings = OBJECTIVES.get(objective, {"supervised": {}}) | {"optimiser": QUICK | {"max_epochs": 5}}
        taught = lesson_rows() if objective == "supervised" else None
        whole, expected = fitted(taught=taught, **settings)
        detector = make("autoencoder", **settings)
        detector.__class__ = _CutOff
        x, later = plant(), plant(300, seed=9)
        rows = TrainingRows(x, codes(x), later, codes(later), taught=taught)
        with pytest.raises(KeyboardInterrupt):
            detector.fit(rows, Fitting(3, CPU, checkpoint=tmp_path))
        said: list[str] = []
        resumed, history = fitted(
            taught=taught, fitting=Fitting(3, CPU, say=said.append, checkpoint=tmp_path), **settings
        )
        assert "goes on after epoch 2, from its checkpoint" in said
        assert history["epochs"] == expected["epochs"]
        np.testing.assert_array_equal(score(resumed, later), score(whole, later))

    def test_other_lessons_begin_anew(self, tmp_path: Path) -> None:
        rows = lesson_rows()
        settings = {"supervised": {}, "optimiser": QUICK}
        fitted(taught=rows, fitting=Fitting(3, CPU, checkpoint=tmp_path), **settings)
        said: list[str] = []
        other = TaughtRows(rows.spectra, rows.code, rows.failure, 1 - rows.mode, rows.modes)
        fitted(taught=other, fitting=Fitting(3, CPU, say=said.append, checkpoint=tmp_path), **settings)
        assert any("training starts again" in line for line in said)

    @pytest.mark.parametrize("objective", OBJECTIVES)
    def test_a_convolutional_network_has_them_too(self, objective: str) -> None:
        detector, _ = fitted(**OBJECTIVES[objective] | {"architecture": "convolutional"})
        assert np.isfinite(score(detector, plant(20))).all()


class _CutOff(AutoencoderDetector):
    """A person stops it in its third epoch."""

    def loss(self, x_BF: torch.Tensor, epoch: int, noise: torch.Generator | None) -> dict[str, torch.Tensor]:
        if noise is not None and epoch == 3:
            raise KeyboardInterrupt
        return super().loss(x_BF, epoch, noise)


class TestRefusals:
    @pytest.mark.parametrize(
        ("settings", "told"),
        [
            ("winner_take_all: {}, sparse: {}", "winner_take_all with sparse"),
            ("winner_take_all: {}, contractive: {}, supervised: {}", "winner_take_all with contractive and supervised"),
            ("winner_take_all: {}, code_activation: tanh", "winner_take_all with code_activation=tanh, expected relu"),
            ("sparse: {}, code_activation: identity", "sparse with code_activation=identity, expected sigmoid or tanh"),
            ("sparse: {target: -0.2}", "sparse.target=-0.2 with a sigmoid code, expected greater than 0"),
            ("sparse: {target: 1.0}", "expected less than 1"),
            ("contractive: {weight: 0}", "expected greater than 0"),
            ("winner_take_all: {share: 1.5}", "expected less than 1"),
            ("supervised: {failures: 0}", "expected greater than 0"),
        ],
    )
    def test_what_does_not_go_together_names_its_line(self, settings: str, told: str) -> None:
        with pytest.raises(ParamsError, match=r"params.yaml, line 2") as error:
            parse_params(f"train:\n  autoencoder: {{{settings}}}\n")
        assert told in str(error.value)

    def test_an_autoencoders_objective_is_unknown_to_the_vae(self) -> None:
        with pytest.raises(ParamsError, match="an unknown key"):
            parse_params("train:\n  vae:\n    sparse: {}\n")

    def test_two_networks_divide_the_failures_alike(self) -> None:
        text = "train:\n  autoencoder: {supervised: {failures: 0.5}}\n  vae: {supervised: {failures: 0.4}}\n"
        with pytest.raises(ParamsError, match=r"got supervised.failures=0.4 and 0.5 of two networks"):
            parse_params(text)

    def test_a_code_wider_than_its_input_should_be_held(self) -> None:
        for free in ({}, {"supervised": {}, "taught": lesson_rows()}):  # a head holds nothing back
            (doubt,) = [text for text in fitted(latent=20, **free)[1]["warnings"] if "Identity" in text]
            assert "set noise, sparse, contractive or winner_take_all of train.autoencoder." in doubt
        for held in (*OBJECTIVES.values(), {"noise": {"gaussian": 0.1}}):
            detector, history = fitted(latent=20, **held)
            assert not [text for text in history["warnings"] if "Identity" in text]
            assert np.isfinite(score(detector, plant(10))).all()

    def test_defaults_hold_nothing_and_take_the_code_as_it_is(self) -> None:
        params = AutoencoderParams()
        assert params.code_of == "identity"
        assert not params.is_regularised
        assert AutoencoderDetector(plain_baselines(BINS), params=params).params.supervised is None

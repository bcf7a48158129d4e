"""The two networks on a small plant: three hidden loads that move 16 bins together, and noise."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from sklearn.covariance import EmpiricalCovariance

from pipeline.detectors import Fitting, TrainingRows, load_detector
from pipeline.detectors.baseline import BaselineTable
from pipeline.detectors.latent import Tail, code_statistics, ledoit_wolf
from pipeline.detectors.learned import NeuralDetector
from pipeline.detectors.neural import AutoencoderDetector, VaeDetector
from pipeline.detectors.objectives import corrupted
from pipeline.errors import ContractError, ParamsError, ReleaseError
from pipeline.params import AutoencoderParams, NoiseParams, VaeParams, parse_params

BINS, LOADS, ROWS = 16, 3, 500
CPU = torch.device("cpu")
QUICK = {"batch_rows": 64, "max_epochs": 3, "learning_rate": 0.01}
LONG = {"batch_rows": 64, "max_epochs": 12, "learning_rate": 0.01}


def plant(rows: int = ROWS, bins: int = BINS, seed: int = 0, load: float = 1.0) -> np.ndarray:
    """Healthy rows (N, F) in robust deviations; under another load they go further where they always go."""
    mixing = np.random.default_rng(1).normal(size=(LOADS, bins)) / np.sqrt(LOADS)
    rng = np.random.default_rng(seed)
    return (load * rng.normal(size=(rows, LOADS)) @ mixing + 0.1 * rng.normal(size=(rows, bins))).astype(np.float32)


def plain_baselines(bins: int) -> BaselineTable:
    """Baselines that leave rows as they are."""
    location, scale = np.zeros((1, bins + 1), np.float32), np.ones((1, bins + 1), np.float32)
    return BaselineTable((), (), None, location, scale, (), 1e-30, log=False)


def codes(x: np.ndarray) -> np.ndarray:
    return np.zeros(len(x), np.int32)


def make(name: str, bins: int = BINS, **settings: Any) -> NeuralDetector:
    small = {"architecture": "dense", "layers": [12], "latent": LOADS, "channels": [4, 8], "optimiser": QUICK}
    small["code_distance"] = "mahalanobis"
    if name == "vae":
        return VaeDetector(plain_baselines(bins), 64, CPU, params=VaeParams.model_validate(small | settings))
    return AutoencoderDetector(
        plain_baselines(bins), 64, CPU, params=AutoencoderParams.model_validate(small | settings)
    )


def train(
    detector: NeuralDetector, x: np.ndarray | None = None, validation: np.ndarray | None = None
) -> dict[str, Any]:
    """History of a training."""
    x = plant(bins=detector.baselines.bins) if x is None else x
    validation = plant(300, detector.baselines.bins, seed=9) if validation is None else validation
    return detector.fit(TrainingRows(x, codes(x), validation, codes(validation)), Fitting(3, CPU))


def score(detector: NeuralDetector, x: np.ndarray) -> np.ndarray:
    return detector.score(x, codes(x))


LOSSES = ["mse", "huber", "gaussian", "bce"]
SCORES = {"autoencoder": ["combined", "residual", "latent"], "vae": ["combined", "residual", "latent", "elbo"]}


class TestTraining:
    @pytest.mark.parametrize("loss", LOSSES)
    @pytest.mark.parametrize("name", ["autoencoder", "vae"])
    def test_every_loss_is_lowered_and_finds_a_fault(self, name: str, loss: str) -> None:
        detector = (
            make(name, loss=loss, optimiser=LONG, beta=0.05) if name == "vae" else make(name, loss=loss, optimiser=LONG)
        )
        history = train(detector)
        losses = [epoch["validation_loss"] for epoch in history["epochs"]]
        assert losses[history["best_epoch"] - 1] < losses[0] - 0.3 * abs(losses[0])
        later = plant(200, seed=11)
        faulty = later + np.r_[np.zeros(6), 2.5, np.zeros(9)].astype(np.float32)
        assert np.median(score(detector, faulty)) > np.percentile(score(detector, later), 98)

    @pytest.mark.parametrize("architecture", ["dense", "convolutional"])
    @pytest.mark.parametrize("bins", [1, 2, 3, 33])
    def test_any_number_of_bins(self, architecture: str, bins: int) -> None:
        detector = make("vae", bins, architecture=architecture, latent=2, score="elbo", draws=2)
        train(detector)
        x = plant(70, bins, seed=4)
        assert np.isfinite(score(detector, x)).all()
        np.testing.assert_allclose(detector.explain(x, codes(x)).sum(1), score(detector, x))

    def test_the_variance_of_a_bin_is_learned(self) -> None:
        x = plant(2000)
        x[:, 7] += np.random.default_rng(3).normal(size=len(x)).astype(np.float32)
        detector = make("autoencoder", loss="gaussian", optimiser=LONG)
        train(detector, x[:1500], x[1500:])
        variance = detector.network.bin_log_variance().exp().detach().numpy()
        assert np.argmax(variance) == 7
        residual = np.square(x - detector.reconstruct(x, codes(x))[1]).mean(0)
        np.testing.assert_allclose(variance, residual, rtol=0.5)

    def test_rows_that_were_masked_are_restored(self) -> None:
        later = plant(500, seed=12)
        broken = corrupted(torch.from_numpy(later), NoiseParams(masking=0.3), torch.Generator().manual_seed(1)).numpy()
        error = {}
        for masking in (0.0, 0.3):
            detector = make("autoencoder", noise={"masking": masking}, optimiser=LONG)
            train(detector, plant(1500))
            error[masking] = np.square(detector.reconstruct(broken, codes(broken))[1] - later).mean()
        assert error[0.3] < 0.7 * error[0.0]

    def test_noise_is_of_training_only_and_comes_from_its_generator(self) -> None:
        x = torch.from_numpy(plant(50))
        noisy = {"gaussian": 0.5, "masking": 0.1, "bin_dropout": 0.1}
        for name in ("autoencoder", "vae"):
            detector = make(name, noise=noisy)
            torch.manual_seed(0)
            detector.build()
            still = [float(detector.loss(x, 1, None)["loss"].detach()) for _ in range(2)]
            drawn = [
                float(detector.loss(x, 1, torch.Generator().manual_seed(seed))["loss"].detach()) for seed in (1, 1, 2)
            ]
            assert still[0] == still[1]
            assert drawn[0] == drawn[1]
            assert len({still[0], drawn[0], drawn[2]}) == 3

    def test_reconstruction_and_kl_are_told_apart_and_beta_rises(self) -> None:
        detector = make("vae", beta=2.0, warmup_epochs=3, optimiser=QUICK | {"max_epochs": 4})
        epochs = train(detector)["epochs"]
        weights = [(e["train_loss"] - e["reconstruction"]) / e["kl"] for e in epochs]
        np.testing.assert_allclose(weights, [2 / 3, 4 / 3, 2.0, 2.0], rtol=1e-3)

    def test_a_cap_on_epochs_is_told(self) -> None:
        history = train(make("autoencoder", optimiser=QUICK | {"max_epochs": 2}))
        assert history["cap_hit"]
        assert "train.autoencoder.optimiser.max_epochs (2)" in history["warnings"][0]

    def test_cycles_without_room_are_refused(self) -> None:
        text = "train:\n  vae: {annealing: cyclical, cycles: 9, optimiser: {max_epochs: 16}}\n"
        with pytest.raises(ParamsError, match="cycles=9 in max_epochs=16"):
            parse_params(text)


class TestScores:
    @pytest.mark.parametrize("residual", ["weighted", "mean_squared"])
    @pytest.mark.parametrize("loss", ["mse", "gaussian", "bce"])
    @pytest.mark.parametrize("name", ["autoencoder", "vae"])
    def test_shares_are_never_negative_and_sum_to_the_score(self, name: str, loss: str, residual: str) -> None:
        draws = {"draws": 3} if name == "vae" else {}
        detector = make(name, loss=loss, residual=residual, **draws)
        train(detector)
        x = np.concatenate([plant(40, seed=5), 300 * plant(10, seed=6), np.zeros((1, BINS), np.float32)])
        found = []
        for kind in SCORES[name]:
            detector.params = detector.params.model_copy(update={"score": kind})
            shares, scores = detector.explain(x, codes(x)), score(detector, x)
            assert shares.min() >= 0
            np.testing.assert_allclose(shares.sum(1), scores, rtol=1e-9, atol=1e-12)
            found.append(scores)
        assert len({tuple(scores) for scores in found}) == len(SCORES[name])

    @pytest.mark.parametrize("precision", ["float32", "bfloat16"])
    @pytest.mark.parametrize("architecture", ["dense", "convolutional"])
    @pytest.mark.parametrize(("name", "kind"), [("autoencoder", "combined"), ("vae", "elbo")])
    def test_a_row_scores_the_same_bits_wherever_it_stands(
        self, name, kind, architecture, precision, tmp_path: Path
    ) -> None:
        draws = {"draws": 3} if name == "vae" else {}
        detector = make(name, score=kind, architecture=architecture, **draws)
        detector.precision = precision
        train(detector)
        x = plant(200, seed=7)
        whole = score(detector, x)
        torch.manual_seed(99)  # nothing draws
        for begin, end in ((0, 200), (1, 200), (63, 66), (150, 151)):
            np.testing.assert_array_equal(score(detector, x[begin:end]), whole[begin:end])
        detector.save(tmp_path)
        loaded = load_detector(tmp_path)
        assert loaded.precision == precision
        np.testing.assert_array_equal(loaded.score(x, codes(x)), whole)

    def test_bfloat16_scores_nearly_as_float32(self) -> None:
        detector = make("autoencoder", architecture="convolutional", score="residual", residual="mean_squared")
        train(detector)
        x = plant(200, seed=7)
        exact = score(detector, x)
        detector.precision = "bfloat16"
        rounded = score(detector, x)
        assert not np.array_equal(exact, rounded)
        np.testing.assert_allclose(rounded, exact, rtol=0.1)

    def test_mean_squared_is_what_it_says(self) -> None:
        detector = make("autoencoder", score="residual", residual="mean_squared")
        train(detector)
        x = plant(80, seed=8)
        original, output = detector.reconstruct(x, codes(x))
        np.testing.assert_allclose(score(detector, x), np.square(original - output).mean(1), rtol=1e-5)

    def test_weights_are_the_healthy_variance_of_each_bin(self) -> None:
        x = plant(1500)
        x[:, 4] += np.random.default_rng(3).normal(size=len(x)).astype(np.float32)  # a bin that nothing explains
        detector = make("autoencoder", score="residual", optimiser=LONG)
        train(detector, x[:1000], x[1000:])
        shares = detector.explain(x[1000:], codes(x[1000:])).mean(0)
        np.testing.assert_allclose(shares, 1 / BINS, rtol=0.05)

    def test_the_latent_distance_is_mahalanobis(self) -> None:
        detector = make("autoencoder", score="latent")
        x = plant(3000)
        train(detector, x)
        with torch.inference_mode():
            code = detector.code(torch.from_numpy(x)).double().numpy()
        np.testing.assert_allclose(
            score(detector, x[:50]), EmpiricalCovariance().fit(code).mahalanobis(code[:50]), rtol=0.02
        )

    def test_a_fault_within_the_learned_surface_is_seen_by_its_code_alone(self) -> None:
        seen = {}
        for kind in ("residual", "latent", "combined"):
            detector = make("autoencoder", activation="identity", layers=[], score=kind, optimiser=LONG)
            train(detector, plant(1500))
            usual = np.percentile(score(detector, plant(300, seed=13)), 99)
            seen[kind] = float((score(detector, plant(300, seed=14, load=3.0)) > usual).mean())
        assert min(seen["latent"], seen["combined"]) > 0.6
        assert seen["residual"] < 0.3

    def test_a_combined_score_tells_how_rare_it_is_and_both_parts_decide_alike_often(self) -> None:
        detector = make("autoencoder", optimiser=LONG)
        train(detector, validation=plant(4000, seed=9))
        x = plant(4000, seed=21)
        for share in (0.1, 0.01):  # of healthy rows beyond: between that of one part alone, and of two
            assert share < (score(detector, x) > -np.log(share)).mean() < 2.4 * share
        with torch.inference_mode():
            residual, latent = detector._parts_of_score(detector.evidence(torch.from_numpy(x)))
        assert (residual * latent == 0).all()
        assert 0.3 < float((residual > 0).float().mean()) < 0.7

    def test_negative_elbo_is_the_mean_over_its_draws(self) -> None:
        x = torch.from_numpy(plant(30, seed=3))
        detector = make("vae", score="elbo", draws=200, beta=0.5)
        train(detector)
        with torch.inference_mode():
            mean, log_variance = detector.distribution(x)
            noise = torch.randn(4000, 1, LOADS, generator=torch.Generator().manual_seed(5))
            output = detector.decode((mean + noise * (0.5 * log_variance).exp()).view(-1, LOADS)).view(4000, 30, BINS)
            reconstruction = 0.5 * (x - output).square().sum(2).mean(0)
            kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)
        np.testing.assert_allclose(score(detector, x.numpy()), (reconstruction + kl).numpy(), rtol=0.1)

    def test_draws_cost_what_the_mean_does_not_see(self) -> None:
        x, scores = plant(100, seed=3), {}
        for draws in (0, 16):
            detector = make("vae", score="elbo", draws=draws, optimiser=LONG)
            train(detector)
            scores[draws] = score(detector, x).mean()
        assert scores[16] > scores[0] + 0.1


class TestTails:
    def test_rarity_rises_for_ever_and_is_exact_at_its_percentiles(self) -> None:
        values = np.random.default_rng(0).gamma(3.0, size=50_000)
        tail = Tail.of(values)
        x = torch.cat([torch.linspace(0, 10, 50), torch.tensor([1e3, 1e9, 1e30])]).double()
        assert (tail(x).diff() > 0).all()
        at = tail(torch.from_numpy(np.quantile(values, [0.5, 0.9, 0.99])))
        np.testing.assert_allclose(at.numpy(), -np.log([0.5, 0.1, 0.01]), rtol=1e-4)

    @pytest.mark.parametrize("values", [np.zeros(5), np.ones(1), np.r_[np.zeros(99), 1.0]])
    def test_values_that_hardly_vary_have_a_tail(self, values: np.ndarray) -> None:
        rarity = Tail.of(values)(torch.tensor([0.0, 1.0, 2.0, 1e6]))
        assert torch.isfinite(rarity).all()
        assert (rarity.diff() > 0).all()

    def test_few_codes_are_shrunk_and_dead_ones_stay_finite(self) -> None:
        rng = torch.Generator().manual_seed(2)
        few = torch.randn(14, 12, generator=rng, dtype=torch.float64)
        values = torch.linalg.eigvalsh(ledoit_wolf(few - few.mean(0)))
        alone = torch.linalg.eigvalsh(torch.cov(few.T, correction=0))
        assert values[0] > 20 * alone[0].clamp_min(1e-9)
        for dead in (torch.zeros(50, 4), torch.cat([torch.randn(50, 1, generator=rng), torch.zeros(50, 3)], dim=1)):
            mean, root = code_statistics(dead)
            assert torch.isfinite((dead.double() - mean) @ root).all()


class Killed(AutoencoderDetector):
    """Its first networks are killed: a bias that no input overcomes."""

    lives = 0
    part: Callable[[NeuralDetector], torch.nn.Module] = staticmethod(lambda detector: detector.network.encoder)
    built = 0

    def build(self) -> None:
        super().build()
        self.built += 1
        if self.built > self.lives:
            return
        with torch.no_grad():
            self.part().layers[0].bias.fill_(-1e3)


class TestDeadNetworks:
    relu = AutoencoderParams.model_validate(
        {
            "architecture": "dense",
            "layers": [12],
            "latent": 3,
            "activation": "relu",
            "optimiser": QUICK | {"max_epochs": 5},
        }
    )

    @pytest.mark.parametrize(("where", "said"), [("encoder", "same code"), ("decoder", "same reconstruction")])
    def test_training_starts_again_from_another_seed(self, where: str, said: str) -> None:
        detector = Killed(plain_baselines(BINS), 64, CPU, params=self.relu)
        detector.lives, detector.part = 2, lambda: getattr(detector.network, where)
        history = train(detector)
        assert history["restarts"] == 2
        assert [said in warning for warning in history["warnings"][:2]] == [True, True]
        assert "(1 of 2)" in history["warnings"][0]
        assert detector.built == 3
        assert detector.what_is_dead(torch.from_numpy(plant(50))) == ""
        # what died after the first epochs was not trained to its end
        assert "after epoch 3" in history["warnings"][0]
        assert len(history["epochs"]) > 3
        assert score(detector, plant(50)).std() > 0

    def test_one_that_stays_dead_is_reported_with_what_to_change_and_still_scores(self) -> None:
        detector = Killed(plain_baselines(BINS), 64, CPU, params=self.relu.model_copy(update={"restarts": 1}))
        detector.lives, detector.part = 9, lambda: detector.network.encoder
        history = train(detector)
        assert history["restarts"] == 1
        assert history["epochs"]
        assert "no seed is left; lower train.autoencoder.optimiser.learning_rate (0.01)" in history["warnings"][1]
        assert np.isfinite(score(detector, plant(50))).all()

    def test_a_learning_rate_that_kills(self) -> None:
        hard = {"schedule": "constant", "learning_rate": 0.3, "max_epochs": 4, "batch_rows": 64}
        detector = make("autoencoder", activation="relu", layers=[32, 32, 32], restarts=1, optimiser=hard)
        history = train(detector, 3 * plant())
        assert history["restarts"] == 1
        assert all(warning.startswith("Dead network") for warning in history["warnings"][:2])

    def test_a_living_network_is_not_disturbed(self) -> None:
        history = train(make("autoencoder", activation="relu", optimiser=QUICK | {"max_epochs": 5}))
        assert history["restarts"] == 0
        assert not [warning for warning in history["warnings"] if "Dead" in warning]


class TestCollapse:
    def test_a_collapsed_posterior_is_told_with_advice(self) -> None:
        history = train(make("vae", beta=500.0, warmup_epochs=0, optimiser=LONG))
        assert history["active_units"] == 0
        (warning,) = [text for text in history["warnings"] if "collapse" in text]
        assert "train.vae.beta (500.0)" in warning
        assert "annealing: cyclical" in warning

    def test_units_in_use_are_counted(self) -> None:
        history = train(make("vae", latent=8, beta=2.0, optimiser=LONG))
        assert LOADS <= history["active_units"] < 8
        assert history["code_dimensions"] == 8
        assert not [text for text in history["warnings"] if "collapse" in text]


class TestBadInput:
    def test_a_code_as_wide_as_the_input_is_warned_of_unless_something_regularises_it(self) -> None:
        wide = train(make("autoencoder", latent=BINS))["warnings"]
        assert wide[0].startswith("Identity mapping: the code (16)")
        assert "train.autoencoder.latent" in wide[0]
        for narrow in (
            make("autoencoder", latent=BINS - 1),
            make("autoencoder", latent=BINS, noise={"masking": 0.1}),
            make("vae", latent=BINS),
        ):
            assert not [text for text in train(narrow)["warnings"] if "Identity" in text]

    @pytest.mark.parametrize("name", ["autoencoder", "vae"])
    def test_constant_bins_are_healthy_until_they_move(self, name: str) -> None:
        x = plant(ROWS + 300)
        x[:, [0, 9]] = 0.0
        detector = make(name, optimiser=LONG)
        train(detector, x[:ROWS], x[ROWS:])
        moved = x[ROWS:].copy()
        moved[:, 9] = 3.0
        assert np.isfinite(score(detector, x)).all()
        assert (score(detector, moved) > score(detector, x[ROWS:])).all()
        assert (detector.explain(moved, codes(moved)).argmax(1) == 9).mean() > 0.9

    @pytest.mark.parametrize("name", ["autoencoder", "vae"])
    def test_rows_that_do_not_vary_at_all_are_told(self, name: str) -> None:
        detector = make(name, residual="mean_squared")
        history = train(detector, np.zeros((100, BINS), np.float32), np.zeros((20, BINS), np.float32))
        assert "do not vary" in history["warnings"][0]
        assert history["restarts"] == 0
        assert np.isfinite(score(detector, plant(10))).all()

    def test_one_bin(self) -> None:
        detector = make("autoencoder", bins=1, latent=1)
        assert "Identity mapping" in train(detector)["warnings"][0]
        assert np.isfinite(score(detector, plant(10, 1))).all()

    @pytest.mark.parametrize("rows", [2, 10])
    def test_fewer_rows_than_a_batch(self, rows: int) -> None:
        detector = make("vae", optimiser=QUICK | {"batch_rows": 4096})
        history = train(detector, plant(rows), plant(1, seed=2))
        assert len(history["epochs"]) == 3
        assert np.isfinite(score(detector, plant(20))).all()

    @pytest.mark.parametrize("loss", LOSSES)
    def test_rows_far_outside_of_anything_have_finite_scores(self, loss: str) -> None:
        x = np.array([1e3, 1e12, 1e30, -1e30], np.float32)[:, None] * np.ones((1, BINS), np.float32)
        for kind in ("combined", "elbo"):
            detector = make("vae", loss=loss, score=kind, draws=2)
            train(detector)
            scores = score(detector, x)
            assert np.isfinite(scores).all()
            assert (scores > score(detector, plant(50)).max()).all()
            np.testing.assert_allclose(detector.explain(x, codes(x)).sum(1), scores)

    def test_a_model_of_another_number_of_bins_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "narrow").mkdir()
        (tmp_path / "wide").mkdir()
        for bins, name in ((8, "narrow"), (BINS, "wide")):
            detector = make("autoencoder", bins)
            train(detector)
            detector.save(tmp_path / name)
        with pytest.raises(ContractError, match=r"got \(5, 8\), expected \(N, 16\)"):
            load_detector(tmp_path / "wide").score(plant(5, 8), np.zeros(5, np.int32))
        narrow, wide = (load_file(tmp_path / name / "weights.safetensors") for name in ("narrow", "wide"))
        mixed = {name: value for name, value in narrow.items() if name.startswith("network.")}
        save_file(wide | mixed, tmp_path / "wide/weights.safetensors")
        with pytest.raises(ReleaseError, match="wide"):
            load_detector(tmp_path / "wide")


class TestNeighbours:
    """Codes in two clouds: what lies between them is far from both, and near their mean."""

    @pytest.fixture
    def clouds(self) -> np.ndarray:
        rng = np.random.default_rng(5)
        side = np.where(np.arange(1500) % 2 == 0, 4.0, -4.0)[:, None]
        return (side * np.linspace(0.5, 1.0, 8) + 0.3 * rng.normal(size=(1500, 8))).astype(np.float32)

    def fitted(self, clouds: np.ndarray, code_distance: str, score: str) -> NeuralDetector:
        layers = {"architecture": "dense", "layers": (16,), "latent": 2, "activation": "identity"}
        detector = make("autoencoder", 8, code_distance=code_distance, score=score, optimiser=LONG, **layers)
        detector.fit(
            TrainingRows(clouds[:1000], codes(clouds[:1000]), clouds[1000:], codes(clouds[1000:])), Fitting(1, CPU)
        )
        return detector

    @pytest.mark.parametrize(("code_distance", "heard"), [("neighbours", True), ("auto", True), ("mahalanobis", False)])
    def test_only_neighbours_hear_what_lies_between_two_clouds(
        self, clouds: np.ndarray, code_distance: str, heard: bool
    ) -> None:
        detector = self.fitted(clouds, code_distance, "latent")
        between = np.zeros((1, 8), np.float32)
        usual = np.percentile(detector.score(clouds[1000:], codes(clouds[1000:])), 99)
        assert (detector.score(between, codes(between))[0] > usual) == heard

    def test_shares_sum_to_the_score_and_both_come_back_from_disk(self, clouds: np.ndarray, tmp_path: Path) -> None:
        detector = self.fitted(clouds, "neighbours", "combined")
        rows = np.concatenate([clouds[:50], clouds[:50] * 3])
        score = detector.score(rows, codes(rows))
        np.testing.assert_allclose(detector.explain(rows, codes(rows)).sum(1), score, rtol=1e-6)
        detector.save(tmp_path)
        np.testing.assert_array_equal(load_detector(tmp_path, CPU).score(rows, codes(rows)), score)

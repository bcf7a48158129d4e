import pytest
import torch
from torch.distributions import Normal
from torch.distributions import kl_divergence as reference_kl

from pipeline.detectors.objectives import (
    BIN_LOG_VARIANCE,
    INPUT_LIMIT,
    annealed,
    as_probability,
    bin_losses,
    bounded,
    corrupted,
    kl_divergence,
    mean_loss,
)
from pipeline.params import NoiseParams

LOSSES = ["mse", "huber", "gaussian", "bce"]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed))


@pytest.mark.parametrize("name", LOSSES)
def test_a_perfect_output_costs_least_and_the_cost_rises_on_both_sides(name: str) -> None:
    x, log_variance = 3 * normal(1, 5), torch.zeros(5)
    costs = [bin_losses(name, x, x + away, log_variance) for away in (-2.0, -1.0, 0.0, 1.0, 2.0)]
    assert costs[2].abs().max() < 1e-6
    assert (costs[0] > costs[1]).all()
    assert (costs[1] > 0).all()
    assert (costs[4] > costs[3]).all()
    assert (costs[3] > 0).all()


@pytest.mark.parametrize("name", LOSSES)
def test_the_mean_is_that_of_the_bins(name: str) -> None:
    x, output, log_variance = 3 * normal(6, 5), normal(6, 5, seed=1), normal(5, seed=2)
    expected = bin_losses(name, x, output, log_variance).mean()
    torch.testing.assert_close(mean_loss(name, x, output, log_variance), expected)


def test_gaussian_is_a_likelihood() -> None:
    x, output, log_variance = normal(4, 3), normal(4, 3, seed=1), torch.tensor([-1.0, 0.0, 2.0])
    likelihood = Normal(output, (0.5 * log_variance).exp()).log_prob(x)
    constant = 0.5 * torch.log(torch.tensor(2 * torch.pi))
    torch.testing.assert_close(bin_losses("gaussian", x, output, log_variance), -likelihood - constant)
    with pytest.raises(ValueError, match="log_variance"):
        bin_losses("gaussian", x, output)


def test_the_best_variance_of_a_bin_is_its_mean_squared_error() -> None:
    x = normal(2000, 2) * torch.tensor([0.3, 4.0])
    log_variance = x.square().mean(0).log().requires_grad_()
    bin_losses("gaussian", x, torch.zeros_like(x), log_variance).mean().backward()
    assert log_variance.grad is not None
    assert log_variance.grad.abs().max() < 1e-6


def test_huber_is_half_the_square_and_then_a_line() -> None:
    away = torch.tensor([[0.5, 1.0, 2.0, 11.0]])
    assert bin_losses("huber", away, torch.zeros(1, 4)).tolist() == [[0.125, 0.5, 1.5, 10.5]]


def test_cross_entropy_takes_any_input_and_lies_on_its_scale() -> None:
    x = torch.tensor([[-1e30, -300.0, 0.0, 300.0, 1e30]])
    assert ((as_probability(x) > 0) & (as_probability(x) < 1)).all()
    output = torch.zeros(1, 5, requires_grad=True)
    cost = bin_losses("bce", x, output)
    cost.sum().backward()
    assert torch.isfinite(cost).all()
    assert torch.isfinite(output.grad).all()
    # the best output of an input within the limit is the input itself
    torch.testing.assert_close(cost[0, 0], bin_losses("bce", torch.tensor([[-INPUT_LIMIT]]), torch.zeros(1, 1))[0, 0])


def test_cross_entropy_has_the_gradient_of_torchs() -> None:
    x, output = normal(3, 4), normal(3, 4, seed=1).requires_grad_()
    (own,) = torch.autograd.grad(bin_losses("bce", x, output).sum(), output)
    reference = torch.nn.functional.binary_cross_entropy(output.sigmoid(), x.sigmoid(), reduction="sum")
    torch.testing.assert_close(own, *torch.autograd.grad(reference, output))


def test_a_bounded_log_variance_keeps_its_limits_its_order_and_a_gradient() -> None:
    raw = torch.linspace(-12, 12, 200, requires_grad=True)
    value = bounded(raw, BIN_LOG_VARIANCE)
    low, high = BIN_LOG_VARIANCE
    assert low <= value.min() < low + 0.1
    assert high - 0.1 < value.max() <= high
    (slope,) = torch.autograd.grad(value.sum(), raw)
    assert (slope[raw.detach().abs() < 11] > 0).all()
    far = bounded(torch.tensor([-1e30, 1e30]), BIN_LOG_VARIANCE)
    assert far.tolist() == [low, high]


def test_gaussian_noise_has_the_size_that_was_asked_for() -> None:
    x = normal(400, 50)
    added = corrupted(x, NoiseParams(gaussian=0.5), generator(3)) - x
    assert 0.49 < added.std() < 0.51
    assert (added != 0).all()


def test_masking_takes_numbers_and_dropout_takes_bins() -> None:
    x = torch.ones(200, 100)
    masked = corrupted(x, NoiseParams(masking=0.3), generator(4)) == 0
    assert 0.28 < masked.float().mean() < 0.32
    assert masked.float().mean(0).max() < 0.5
    dropped = corrupted(x, NoiseParams(bin_dropout=0.3), generator(4)) == 0
    assert set(dropped.float().mean(0).tolist()) == {0.0, 1.0}
    assert 15 < dropped[0].sum() < 45
    # what is dropped is silent, whatever noise was added
    every = corrupted(x, NoiseParams(gaussian=1.0, masking=0.2, bin_dropout=0.2), generator(4))
    assert 0.3 < (every == 0).float().mean() < 0.42


def test_corruption_follows_its_generator_and_leaves_the_input_alone() -> None:
    x, noise = normal(20, 8), NoiseParams(gaussian=0.2, masking=0.2, bin_dropout=0.2)
    kept = x.clone()
    first, again, other = (corrupted(x, noise, generator(seed)) for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(x, kept)
    assert corrupted(x, NoiseParams(), generator()) is x


def test_kl_is_that_of_normal_distributions() -> None:
    mean, log_variance = normal(5, 3), normal(5, 3, seed=1)
    reference = reference_kl(Normal(mean, (0.5 * log_variance).exp()), Normal(0.0, 1.0))
    torch.testing.assert_close(kl_divergence(mean, log_variance), reference)


def test_annealing_begins_low_and_ends_at_the_whole() -> None:
    def shares(annealing: str) -> list[float]:
        return [annealed(annealing, e, warmup_epochs=5, cycles=4, max_epochs=16) for e in range(1, 17)]

    assert shares("none") == [1.0] * 16
    assert shares("linear") == [0.2, 0.4, 0.6, 0.8, *[1.0] * 12]
    assert shares("cyclical") == [0.0, 0.5, 1.0, 1.0] * 4
    assert annealed("linear", 1, warmup_epochs=0, cycles=1, max_epochs=3) == 1.0

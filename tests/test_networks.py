import pytest
import torch
from torch import nn

from pipeline.detectors.networks import (
    ConvolutionalDecoder,
    ConvolutionalEncoder,
    dense_decoder,
    dense_encoder,
    make_layers,
    use_matrices,
)
from pipeline.params import AutoencoderParams

BINS = [1, 2, 3, 63, 64, 1025]


@pytest.fixture(autouse=True)
def _seeded():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        yield


def convolutional(bins: int, channels: tuple[int, ...] = (4, 8, 8), kernel: int = 5) -> nn.ModuleList:
    encoder = ConvolutionalEncoder(bins, channels, kernel, 6)
    return nn.ModuleList([encoder, ConvolutionalDecoder(bins, channels, kernel, 6)])


def answers(layers: nn.ModuleList, x: torch.Tensor) -> list[torch.Tensor]:
    """Code, output, and the gradient of every parameter."""
    layers.zero_grad()
    code = layers[0](x)
    output = layers[1](code)
    (output - x).square().mean().backward()
    return [code.detach(), output.detach(), *(p.grad.clone() for p in layers.parameters())]


@pytest.mark.parametrize("bins", BINS)
@pytest.mark.parametrize("architecture", ["dense", "convolutional"])
def test_any_number_of_bins_goes_in_and_comes_out(bins: int, architecture: str) -> None:
    params = AutoencoderParams(architecture=architecture, latent=5, channels=(4, 8), layers=(16, 8))
    encoder, decoder = make_layers(params, bins, 7)
    x = torch.randn(3, bins)
    outputs = encoder(x)
    assert outputs.shape == (3, 7)
    assert decoder(outputs[:, :5]).shape == x.shape


@pytest.mark.parametrize(
    ("bins", "channels", "kernel"),
    [*((bins, (4, 8, 8), 5) for bins in BINS), (64, (8, 16, 32), 3), (33, (3,), 15), (128, (2, 2, 2, 2, 2, 2), 7)],
)
def test_a_convolution_as_a_matrix_has_the_same_answers_and_gradients(bins, channels, kernel) -> None:
    layers, x = convolutional(bins, channels, kernel), torch.randn(9, bins)
    plain = answers(layers, x)
    before = {name: value.clone() for name, value in layers.state_dict().items()}
    use_matrices(layers, "always")
    assert all(part.matrices == "always" for part in layers)
    for one, other in zip(plain, answers(layers, x), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=2e-6 * max(1.0, float(one.abs().max())))
    after = layers.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_matrices_follow_their_kernels_while_nothing_trains() -> None:
    layers, x = convolutional(64), torch.randn(5, 64)
    use_matrices(layers.eval(), "always")
    with torch.inference_mode():
        first = layers[0](x)
    other = convolutional(64)
    layers.load_state_dict(other.state_dict())
    with torch.inference_mode():
        second, expected = layers[0](x), other[0](x)
    assert not torch.allclose(first, second)
    torch.testing.assert_close(second, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("matrices", ["where_faster", "always"])
def test_matrices_follow_the_steps_of_a_fused_optimiser(matrices) -> None:
    layers, x = convolutional(64, (8, 16, 32), 5), torch.randn(6, 64)
    use_matrices(layers, matrices)
    optimiser = torch.optim.AdamW(layers.parameters(), lr=0.1, fused=True)
    for _ in range(3):
        with torch.inference_mode():
            layers[1](layers[0](x))
        optimiser.zero_grad()
        layers[1](layers[0](x)).square().mean().backward()
        optimiser.step()
        with torch.inference_mode():
            followed = layers[1](layers[0](x))
            use_matrices(layers, "never")
            torch.testing.assert_close(followed, layers[1](layers[0](x)), rtol=1e-3, atol=1e-4)
            use_matrices(layers, matrices)


@pytest.mark.parametrize("bins", [64, 61, 512])
def test_matrices_where_they_are_faster_give_the_same_answers_and_leave_training_alone(bins: int) -> None:
    layers, x = convolutional(bins, (8, 16, 32), 5), torch.randn(6, bins)
    with torch.inference_mode():
        plain = layers[1](layers[0](x))
    trained = answers(layers, x)
    use_matrices(layers, "where_faster")
    with torch.inference_mode():
        torch.testing.assert_close(layers[1](layers[0](x)), plain, rtol=1e-4, atol=1e-5)
    for one, other in zip(trained, answers(layers, x), strict=True):
        assert torch.equal(one, other)


def test_bins_that_fill_up_repeat_the_last() -> None:
    odd, even = ConvolutionalEncoder(61, (4, 8), 5, 3), ConvolutionalEncoder(64, (4, 8), 5, 3)
    even.load_state_dict(odd.state_dict())
    x = torch.randn(4, 61)
    torch.testing.assert_close(odd(x), even(torch.cat([x, x[:, -1:].expand(-1, 3)], dim=1)))


@pytest.mark.parametrize("layers", [(), (7,), (20, 10, 4, 9)])
def test_a_dense_stack_is_mirrored(layers: tuple[int, ...]) -> None:
    there, back = dense_encoder(12, layers, "relu", 3), dense_decoder(12, layers, "relu", 3)
    shapes = [tuple(layer.weight.shape) for layer in there.layers]
    assert [shape for shape, _ in shapes] == [*layers, 3]
    assert [tuple(layer.weight.shape)[::-1] for layer in reversed(back.layers)] == shapes


@pytest.mark.parametrize("architecture", ["dense", "convolutional"])
def test_only_the_identity_is_linear(architecture: str) -> None:
    bent = {}
    for activation in ("identity", "relu", "tanh", "gelu"):
        params = AutoencoderParams(
            architecture=architecture, latent=4, layers=(9,), channels=(4,), activation=activation
        )
        encoder, decoder = make_layers(params, 10, 4)
        one, other, zero = torch.randn(6, 10), torch.randn(6, 10), torch.zeros(6, 10)
        both, alone = (
            decoder(encoder(one + other)) + decoder(encoder(zero)),
            decoder(encoder(one)) + decoder(encoder(other)),
        )
        bent[activation] = float((both - alone).detach().abs().max())
    assert bent["identity"] < 1e-5
    assert min(bent["relu"], bent["tanh"], bent["gelu"]) > 1e-4
    assert len({round(value, 6) for value in bent.values()}) == 4

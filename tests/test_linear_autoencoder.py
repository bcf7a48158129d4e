"""A linear autoencoder spans the principal subspace (Baldi and Hornik, Neural Networks 2 (1989) 53)."""

import numpy as np
import pytest
import torch
from scipy.linalg import subspace_angles

from pipeline.detectors import Fitting, TrainingRows, fit_baselines
from pipeline.detectors.linear import PcaDetector
from pipeline.detectors.neural import AutoencoderDetector
from pipeline.params import AutoencoderParams
from pipeline.rows import RowKeys

BINS, LATENT, CPU = 16, 3, torch.device("cpu")


def degrees(one: np.ndarray, other: np.ndarray) -> float:
    """The largest principal angle between the column spaces of two matrices (F, L)."""
    return float(np.rad2deg(subspace_angles(one, other)).max())


@pytest.fixture
def training(rng: np.random.Generator) -> tuple[TrainingRows, object]:
    """Three loads that move the bins together, and noise that differs from bin to bin."""
    loads = rng.normal(size=(3000, LATENT)) * (1.0, 0.8, 0.6)
    logs = loads @ rng.normal(size=(LATENT, BINS)) + 0.3 * rng.uniform(0.5, 1.5, BINS) * rng.normal(size=(3000, BINS))
    spectra = np.exp(logs).astype(np.float32)
    keys = RowKeys.of(["pump"], np.zeros(3000, int), np.zeros(3000, int))
    table = fit_baselines(spectra, keys)
    code = table.codes(keys)
    return TrainingRows(spectra[:2400], code[:2400], spectra[2400:], code[2400:]), table


def test_a_linear_autoencoder_spans_the_principal_subspace(training) -> None:
    rows, table = training
    pca = PcaDetector(table, 256, variance_kept=0.9999, max_components=LATENT)
    pca.fit(rows, Fitting(1, CPU))
    optimiser = {"max_epochs": 40, "patience": 40, "batch_rows": 256, "learning_rate": 0.01, "weight_decay": 0}
    params = AutoencoderParams.model_validate(
        {"architecture": "dense", "layers": [], "activation": "identity", "latent": LATENT, "optimiser": optimiser}
    )
    linear = AutoencoderDetector(table, 256, params=params)
    linear.fit(rows, Fitting(1, CPU))
    decoder = linear.network.state_dict()["decoder.layers.0.weight"].numpy()
    assert decoder.shape == (BINS, LATENT)
    principal = pca.vectors.numpy()
    assert degrees(decoder, principal) < 3
    # random directions are far away
    assert degrees(np.random.default_rng(1).normal(size=(BINS, LATENT)), principal) > 45
    relative = linear.relative(rows.validation, rows.validation_code)[:, :-1]
    with torch.inference_mode():
        lost = (relative - linear.decode(linear.code(relative))).square().mean()
    centred = relative - pca.mean
    kept = (centred - centred @ pca.vectors @ pca.vectors.T).square().mean()
    assert float(lost) == pytest.approx(float(kept), rel=0.02)

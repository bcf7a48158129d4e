"""bands: a tone shows its amplitude, noise keeps its energy, windows do not depend on how the samples came."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.bands import band_plan, band_spectra, windowed_bands
from pipeline.errors import ContractError
from pipeline.layout import WaveformLayout

RATE = 25_600.0


def tone(amplitude: float, hertz: float, samples: int, rate: float = RATE) -> np.ndarray:
    return (amplitude * np.sin(2 * np.pi * hertz * np.arange(samples) / rate)).astype(np.float32)


def whole(signal: np.ndarray, layout: WaveformLayout, rate: float = RATE, block: int = 10**9) -> np.ndarray:
    plan = band_plan(layout, rate, "test")
    columns = signal.reshape(len(signal), -1)
    blocks = (columns[first : first + block] for first in range(0, len(columns), block))
    parts = list(windowed_bands(blocks, layout, plan))
    return np.concatenate(parts) if parts else np.empty((0, layout.bands))


def test_a_tone_shows_its_amplitude_in_its_band_and_nowhere_else() -> None:
    layout = WaveformLayout(window_samples=2048, bands=64, band="peak")
    spectra = whole(tone(2.5, 1000.0, 4096) + 7.0, layout)  # the mean says nothing
    assert spectra.shape == (2, 64)
    assert np.allclose(spectra[:, 4], 2.5, rtol=1e-4)  # bands are 200 Hz wide, open below and closed above
    far = np.delete(spectra, [3, 4, 5], axis=1)
    assert far.max() < 1e-4


def test_the_same_recipe_as_written_out_line_by_line() -> None:
    rng = np.random.default_rng(1)
    window = rng.standard_normal(1024).astype(np.float32)
    taper = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(1024) / 1024)
    lines = np.abs(np.fft.rfft((window - window.mean()) * taper)) * 2 / taper.sum()
    groups = lines[1:].reshape(32, 16)  # without the DC line, 32 bands of 16 lines
    for band, expected in (("rms", np.sqrt((groups**2).mean(1))), ("peak", groups.max(1))):
        layout = WaveformLayout(window_samples=1024, bands=32, band=band)
        assert np.allclose(band_spectra(window[None], band_plan(layout, RATE, "test"), band)[0], expected, rtol=1e-4)


def test_the_bands_hold_the_energy_of_noise() -> None:
    layout = WaveformLayout(window_samples=2048, bands=64)
    signal = np.random.default_rng(2).standard_normal(2048 * 400).astype(np.float32) * 3
    spectra, plan = whole(signal, layout).astype(np.float64), band_plan(layout, RATE, "test")
    variance = (spectra**2 * plan.lines_F).sum(1).mean() / 2 / 1.5  # 1.5 lines: the noise bandwidth of Hann's window
    assert variance == pytest.approx(9.0, rel=0.01)
    assert spectra.mean(0).std() / spectra.mean() < 0.02  # white


@pytest.mark.parametrize(("overlap", "count"), [(0.0, 9), (0.5, 18), (0.75, 36)])
@pytest.mark.parametrize("block", [1, 255, 256, 1000, 10**9])
def test_windows_do_not_depend_on_the_blocks(overlap: float, count: int, block: int) -> None:
    layout = WaveformLayout(window_samples=256, overlap=overlap, bands=8)
    signal = np.random.default_rng(3).standard_normal((2500, 2)).astype(np.float32)
    expected = [signal[first : first + 256] for first in range(0, 2500 - 255, layout.hop_samples)]
    spectra = whole(signal, layout, block=block)
    assert spectra.shape == (len(expected), 16)
    assert len(expected) in (count, count - 1)
    plan = band_plan(layout, RATE, "test")
    for channel in (0, 1):
        alone = band_spectra(np.stack([window[:, channel] for window in expected]), plan, "rms")
        assert np.allclose(spectra[:, channel * 8 : channel * 8 + 8], alone, rtol=1e-5)


def test_a_range_takes_only_its_lines() -> None:
    layout = WaveformLayout(window_samples=1024, bands=10, min_hz=1000, max_hz=2000, band="peak")
    plan = band_plan(layout, RATE, "test")
    assert plan.edges_hz == tuple(float(edge) for edge in range(1000, 2001, 100))
    assert plan.lines_F.sum() == 40
    assert whole(tone(1, 1550, 1024), layout).argmax() == 5
    assert whole(tone(1, 500, 1024), layout).max() < 1e-3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bands": 4096, "window_samples": 2048}, "4096 bands over the 1024 lines"),
        ({"max_hz": 20_000}, "max_hz <= 12800"),
        ({"min_hz": 13_000}, "min_hz < max_hz"),
    ],
)
def test_bands_that_cannot_be_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ContractError, match=message):
        band_plan(WaveformLayout(**settings), RATE, "test")


def test_4096_bands_and_a_sample_that_is_infinite() -> None:
    layout = WaveformLayout(window_samples=16_384, bands=4096)
    signal = tone(1, 1000, 3 * 16_384)
    signal[20_000] = np.inf
    spectra = whole(signal, layout)
    assert spectra.shape == (3, 4096)
    assert np.isfinite(spectra).all(1).tolist() == [True, False, True]

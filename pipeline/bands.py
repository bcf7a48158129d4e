"""Raw vibration as band spectra: windows of a signal, their magnitudes, and one number per band.

Mean removed, Hann window, |rfft| x 2 / sum(window): a tone of amplitude A at the middle of a line shows A there. The DC
line is dropped; the others fall into bands of equal width, of which each is open below and closed above.

Shape legend: S samples, C channels, W windows, K lines, F bands.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import fft

from pipeline.errors import ContractError
from pipeline.layout import WaveformLayout
from pipeline.schema import FloatNF

FRAME_BYTES = 16 << 20  # of windows that are transformed at once
THREADS = 2


@dataclass(frozen=True)
class BandPlan:
    """Which lines of a window's spectrum make which band."""

    edges_hz: tuple[float, ...]  # F + 1
    first: int  # line of the lowest band
    starts_F: npt.NDArray[np.intp]  # of each band, from `first` on
    lines_F: npt.NDArray[np.int64]  # in each band


def band_plan(layout: WaveformLayout, rate_hz: float, where: object) -> BandPlan:
    """The bands of signals of this sample rate.

    Raises:
        ContractError: bands above half the sample rate, or finer than the lines.

    >>> band_plan(WaveformLayout(window_samples=2048), 25_600, "example").lines_F[:2].tolist()
    [16, 16]
    """
    nyquist = rate_hz / 2
    top = nyquist if layout.max_hz is None else layout.max_hz
    if not layout.min_hz < top <= nyquist * (1 + 1e-9):
        expected = f"min_hz < max_hz <= {nyquist:g} (half the sample rate)"
        raise ContractError.of("bands", got=f"{layout.min_hz:g} to {top:g} Hz", expected=expected, where=where)
    line_K = np.arange(1, layout.window_samples // 2 + 1) * (rate_hz / layout.window_samples)
    width = (top - layout.min_hz) / layout.bands
    band_K = np.ceil(np.round((line_K - layout.min_hz) / width, 6)).astype(np.int64) - 1
    inside = np.flatnonzero((band_K >= 0) & (band_K < layout.bands))
    lines_F = np.bincount(band_K[inside], minlength=layout.bands)
    if (lines_F == 0).any():
        got = f"{layout.bands} bands over the {len(inside)} lines of a window of {layout.window_samples} samples"
        raise ContractError.of("bands", got=got, expected="fewer bands or a longer window (--window)", where=where)
    edges = tuple(float(edge) for edge in layout.min_hz + width * np.arange(layout.bands + 1))
    return BandPlan(edges, int(inside[0]) + 1, np.cumsum(lines_F) - lines_F, lines_F)


def band_spectra(windows_WS: FloatNF, plan: BandPlan, band: str) -> FloatNF:
    """Band spectra (W, F) of windows (W, S), linear magnitudes in the unit of the signal.

    >>> layout = WaveformLayout(window_samples=256, bands=8)
    >>> tone = 3 * np.sin(2 * np.pi * 20 * np.arange(256, dtype=np.float32) / 256)
    >>> plan = band_plan(layout, 256.0, "example")
    >>> float(band_spectra(tone[None], plan, "peak").max().round(3))
    3.0
    """
    size = windows_WS.shape[1]
    taper_S = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)).astype(np.float32)  # periodic Hann
    with np.errstate(over="ignore", invalid="ignore"):  # a sample that is infinite makes its window infinite
        tapered_WS = (windows_WS - windows_WS.mean(axis=1, keepdims=True)) * taper_S
        last = plan.first + int(plan.lines_F.sum())
        lines_WK = np.abs(fft.rfft(tapered_WS, axis=1, workers=THREADS)[:, plan.first : last])
        lines_WK *= np.float32(2 / taper_S.sum(dtype=np.float64))
        if band == "peak":
            return np.maximum.reduceat(lines_WK, plan.starts_F, axis=1)
        np.square(lines_WK, out=lines_WK)
        return np.sqrt(np.add.reduceat(lines_WK, plan.starts_F, axis=1) / plan.lines_F.astype(np.float32))


def windowed_bands(
    blocks: Iterable[FloatNF], layout: WaveformLayout, plan: BandPlan
) -> Iterator[npt.NDArray[np.float32]]:
    """Band spectra (W, C * F), channel by channel, of every full window of a signal that comes in blocks (S, C).

    Memory is that of some windows, however long the signal is.
    """
    size, hop, rest = layout.window_samples, layout.hop_samples, None
    for block_SC in blocks:
        joined_SC = block_SC if rest is None else np.concatenate([rest, block_SC])
        count = max(0, (len(joined_SC) - size) // hop + 1)
        if count:
            at_once = max(1, FRAME_BYTES // (4 * size))
            views_WCS = np.lib.stride_tricks.sliding_window_view(joined_SC, size, axis=0)[::hop][:count]
            for begin in range(0, count, at_once):
                part_WCS = views_WCS[begin : begin + at_once]
                yield np.concatenate(
                    [
                        band_spectra(np.ascontiguousarray(part_WCS[:, channel]), plan, layout.band)
                        for channel in range(joined_SC.shape[1])
                    ],
                    axis=1,
                )
        rest = joined_SC[count * hop :].copy()  # a hop is never longer than a window

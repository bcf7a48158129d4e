"""Raw waveforms as a plant stores them, WAV, .npy, MATLAB .mat and CSV, as streams of samples.

Only .mat is read whole (its variables are compressed): everything else comes in blocks.

Shape legend: S samples, C channels.
"""

from __future__ import annotations

import fnmatch
import io
import re
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from scipy.io import loadmat

from pipeline.errors import ContractError
from pipeline.schema import FloatNF

BLOCK_BYTES = 8 << 20
MOST_MAT_BYTES = 2 << 30
WAV_PCM, WAV_FLOAT, WAV_EXTENSIBLE = 1, 3, 0xFFFE

Opener = Callable[[], IO[bytes]]


@dataclass(frozen=True)
class Signal:
    """A record that has been looked at: its channels, its rate, and how to read it."""

    channels: tuple[str, ...]
    rate_hz: float | None  # None: the file does not tell
    blocks: Callable[[Sequence[int]], Iterator[FloatNF]]  # of the chosen channels, (S, C) float32


def chosen_channels(known: Sequence[str], wanted: Sequence[str] | None, where: object) -> list[int]:
    """Places of the wanted channels: names, patterns such as `*_DE_time` that fit exactly one, or numbers from 0.

    Raises:
        ContractError: a channel that is not there, or a pattern that fits several.

    >>> chosen_channels(["X097_DE_time", "X097_FE_time"], ["*_FE_time"], "example")
    [1]
    """
    if wanted is None:
        return list(range(len(known)))
    found = []
    for name in wanted:
        places = [place for place, other in enumerate(known) if other == name]
        places = places or [place for place, other in enumerate(known) if fnmatch.fnmatchcase(other, name)]
        if not places and name.isdigit() and int(name) < len(known):
            places = [int(name)]
        if len(places) != 1:
            got = f"{len(places) or 'no'} channels that fit {name!r}"
            raise ContractError.of("channels", got=got, expected=f"one of {', '.join(known[:20])}", where=where)
        found += places
    return found


# --- WAV -----------------------------------------------------------------------------------------------------------


def wav_signal(opener: Opener, where: object) -> Signal:
    """A WAV file: integer samples (8 to 32 bits) as parts of full scale, -1 to 1; float samples as they are.

    Raises:
        ContractError: no WAV file, cut off, or of compressed sound.
    """
    with opener() as file:
        rate, channels, width, code, begin, size = _wav_header(file, where)

    def blocks(wanted: Sequence[int]) -> Iterator[FloatNF]:
        with opener() as stream:
            stream.seek(begin)
            frame, left = width * channels, size
            while left >= frame:
                data = stream.read(min(left, max(1, BLOCK_BYTES // frame) * frame))
                if not data or len(data) % frame:
                    got = f"a file that ends {left - len(data)} bytes early"
                    raise ContractError.of("WAV", got=got, expected="a whole file", where=where)
                left -= len(data)
                yield _wav_samples(data, width, code).reshape(-1, channels)[:, list(wanted)]

    return Signal(tuple(str(number) for number in range(channels)), float(rate), blocks)


def _wav_header(file: IO[bytes], where: object) -> tuple[int, int, int, int, int, int]:
    """Rate, channels, bytes per sample, format code, first byte of the samples, their bytes."""
    head = file.read(12)
    if len(head) < 12 or head[:4] not in (b"RIFF", b"RF64") or head[8:12] != b"WAVE":
        raise ContractError.of("WAV", got="a file that is no WAV", expected="RIFF WAVE", where=where)
    form: tuple[int, int, int, int] | None = None
    big: int | None = None
    while len(chunk := file.read(8)) == 8:
        name, size = chunk[:4], int(struct.unpack("<I", chunk[4:])[0])
        if name == b"data" and form is not None:
            rate, channels, width, code = form
            return rate, channels, width, code, file.tell(), big if size == 0xFFFFFFFF and big is not None else size
        body = file.read(size + size % 2) if size < 1 << 20 else b""
        if name == b"ds64" and len(body) >= 16:
            big = int(struct.unpack("<Q", body[8:16])[0])
        if name == b"fmt ":
            form = _wav_form(body, where)
        if len(body) < size:
            break
    raise ContractError.of("WAV", got="a file without samples, or cut off", expected="a whole file", where=where)


def _wav_form(body: bytes, where: object) -> tuple[int, int, int, int]:
    if len(body) < 16:
        raise ContractError.of("WAV", got="a file that is cut off", expected="a whole file", where=where)
    code, channels, rate, _, align, bits = struct.unpack("<HHIIHH", body[:16])
    if code == WAV_EXTENSIBLE and len(body) >= 26:
        code = struct.unpack("<H", body[24:26])[0]
    width = bits // 8
    known = (code == WAV_PCM and bits in (8, 16, 24, 32)) or (code == WAV_FLOAT and bits in (32, 64))
    if not known or not channels or not rate or align != width * channels:
        got = f"format {code} of {bits} bits, {channels} channels, {rate} Hz"
        raise ContractError.of("WAV", got=got, expected="PCM of 8 to 32 bits, or float of 32 or 64", where=where)
    return rate, channels, width, code


def _wav_samples(data: bytes, width: int, code: int) -> FloatNF:
    if code == WAV_FLOAT:
        return _as_float32(np.frombuffer(data, "<f4" if width == 4 else "<f8"))
    if width == 1:  # unsigned, by the standard
        return _as_float32((np.frombuffer(data, np.uint8).astype(np.float64) - 128) / 128)
    if width == 3:
        padded = np.zeros((len(data) // 3, 4), np.uint8)
        padded[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
        return _as_float32(padded.reshape(-1).view("<i4") / 2.0**31)
    return _as_float32(np.frombuffer(data, "<i2" if width == 2 else "<i4") / 2.0 ** (8 * width - 1))


# --- NumPy ---------------------------------------------------------------------------------------------------------


def npy_signal(opener: Opener, size: int, where: object) -> Signal:
    """A .npy file of samples, (S,) or (S, C); never a pickle.

    Raises:
        ContractError: no .npy file, cut off, of objects or text, or of another shape.
    """
    with opener() as file:
        try:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, by_column, kind = read(file)
        except Exception as error:  # noqa: BLE001  the reader raises any type for damaged bytes
            got = f"a file that is cut off or no .npy ({_first_line(error)})"
            raise ContractError.of("npy", got=got, expected="an array of samples", where=where) from None
        begin = file.tell()
    if kind.hasobject or kind.kind not in "iuf" or len(shape) not in (1, 2) or kind.subdtype is not None:
        got = f"{kind} of shape {shape}"
        raise ContractError.of("npy", got=got, expected="numbers, (samples,) or (samples, channels)", where=where)
    samples, channels = (*shape, 1)[:2]
    if channels < 1 or channels > 1024 or size - begin < samples * channels * kind.itemsize:
        got = f"shape {shape} in {size} bytes"
        raise ContractError.of("npy", got=got, expected="a whole file of at most 1024 channels", where=where)

    def blocks(wanted: Sequence[int]) -> Iterator[FloatNF]:
        rows = max(1, BLOCK_BYTES // (kind.itemsize * channels))
        with opener() as stream:
            for first in range(0, samples, rows):
                count = min(rows, samples - first)
                if by_column and channels > 1:
                    parts = [_read_at(stream, begin, kind, c * samples + first, count) for c in wanted]
                    yield _as_float32(np.stack(parts, axis=1))
                else:
                    values = _read_at(stream, begin, kind, first * channels, count * channels)
                    yield _as_float32(values.reshape(-1, channels)[:, list(wanted)])

    return Signal(tuple(str(number) for number in range(channels)), None, blocks)


def _read_at(stream: IO[bytes], begin: int, kind: np.dtype[Any], first: int, count: int) -> npt.NDArray[Any]:
    stream.seek(begin + first * kind.itemsize)
    return np.frombuffer(stream.read(count * kind.itemsize), kind, count)


# --- MATLAB --------------------------------------------------------------------------------------------------------


def mat_signal(opener: Opener, size: int, where: object) -> Signal:
    """The signals of a MATLAB file (version 4 to 7): its longest numeric vectors; scalars and all else are passed over.

    Raises:
        ContractError: no MATLAB file, cut off, version 7.3 (HDF5), or without a signal.
    """
    if size > MOST_MAT_BYTES:
        got = f"{size >> 20} MB"
        raise ContractError.of("mat", got=got, expected=f"at most {MOST_MAT_BYTES >> 20} MB", where=where)
    variables = _mat_variables(opener, where)
    vectors = {name: values.reshape(-1) for name, values in variables.items() if 1 < values.size == max(values.shape)}
    for name, values in variables.items():  # (samples, channels), in one variable
        if values.ndim == 2 and 1 < values.shape[1] <= 64 < values.shape[0]:
            vectors |= {f"{name}_{column}": values[:, column] for column in range(values.shape[1])}
    longest = max((len(values) for values in vectors.values()), default=0)
    signals = {name: values for name, values in vectors.items() if len(values) == longest}
    if not signals:
        got = f"variables {', '.join(variables) or 'of no numbers'}"
        raise ContractError.of("mat", got=got, expected="a vector of samples", where=where)

    def blocks(wanted: Sequence[int]) -> Iterator[FloatNF]:
        names = list(signals)
        rows = max(1, BLOCK_BYTES // (4 * len(wanted)))
        for first in range(0, longest, rows):
            yield _as_float32(np.stack([signals[names[c]][first : first + rows] for c in wanted], axis=1))

    return Signal(tuple(signals), None, blocks)


def _mat_variables(opener: Opener, where: object) -> dict[str, npt.NDArray[Any]]:
    with opener() as file:
        data = file.read()
    if b"MATLAB 7.3 MAT-file" in data[:128] or data[:8] == b"\x89HDF\r\n\x1a\n":
        expected = "version 7 or older: in MATLAB, save(name, '-v7')"
        raise ContractError.of("mat", got="a file of version 7.3 (HDF5)", expected=expected, where=where)
    try:
        found = loadmat(io.BytesIO(data), struct_as_record=True, verify_compressed_data_integrity=True)
    except Exception as error:  # noqa: BLE001  the reader raises any type for damaged bytes
        got = f"a file that is cut off or no MATLAB file ({_first_line(error)})"
        raise ContractError.of("mat", got=got, expected="a whole .mat file", where=where) from None
    return {
        name: value
        for name, value in found.items()
        if not name.startswith("__") and isinstance(value, np.ndarray) and value.dtype.kind in "iuf"
    }


def _as_float32(values: npt.NDArray[Any]) -> FloatNF:
    with np.errstate(over="ignore", invalid="ignore"):
        return np.ascontiguousarray(values, dtype=np.float32)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


TIME_LIKE = re.compile(
    r"[tsn]|t ?[(\[].*|(time|timestamp|zeit|date|sec|seconds|sample|samples|index)([\s_(\[].*)?", re.I
)


def looks_like_time(name: str) -> bool:
    """Whether a column of a waveform's CSV counts time or samples rather than measures.

    >>> looks_like_time("Time (s)"), looks_like_time("s1")
    (True, False)
    """
    return TIME_LIKE.fullmatch(name.strip()) is not None

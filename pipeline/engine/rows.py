"""The rows that a network trains on: resident on the device when they fit, else streamed from a scratch file.

The order of an epoch is the same either way: whole hours (blocks of neighbouring rows) are dealt into chunks, and the
rows of a chunk are shuffled. So the free memory of a machine does not decide the bits of the weights.

Shape legend: N rows, F features, K blocks, C rows of a chunk.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import psutil
import torch

from pipeline.errors import ContractError

CHUNK_BYTES = 256 * 2**20  # two such chunks are in memory while streaming
BLOCK_ROWS = 256  # of neighbouring rows at least: reads of 64 kB at 64 features
PART_ROWS = 65_536
USABLE_SHARE = {"cpu": 0.5, "cuda": 0.8}  # of the free memory: the rest is for gradients, and for others

IntN = npt.NDArray[np.integer]


@dataclass(frozen=True)
class Chunk:
    """Rows in the order in which they train: `take` of all of them, without making that copy.

    With `window` (N, W) each is all the rows of `source` that its window holds, one after the other.
    """

    source: torch.Tensor
    order: torch.Tensor
    window: torch.Tensor | None = None

    def take(self, picked: torch.Tensor) -> torch.Tensor:
        """Rows of a part of the order."""
        if self.window is None:
            return self.source.index_select(0, picked)
        rows = self.window.index_select(0, picked)
        return self.source.index_select(0, rows.flatten()).view(len(rows), -1)


@dataclass(frozen=True)
class FeatureRows:
    """N rows of F features for training; made by `resident`, or by `gather` from parts.

    >>> rows = FeatureRows.resident(torch.arange(6.0).reshape(3, 2))
    >>> len(rows), rows.bins, rows.streamed
    (3, 2, False)
    >>> [chunk.source.index_select(0, chunk.order).shape for chunk in rows.epoch(seed=1, batch_rows=2)]
    [torch.Size([3, 2])]
    >>> rows.in_windows(np.array([[0, 0], [0, 1], [1, 2]])).every(2).tolist()
    [[0.0, 1.0, 0.0, 1.0], [2.0, 3.0, 4.0, 5.0]]
    """

    features: torch.Tensor  # (N, F) on the device, or a map of the scratch file
    device: torch.device
    starts_K: npt.NDArray[np.int64]  # first row of each block
    streamed: bool
    window: torch.Tensor | None = None  # (N, W) rows that train together, as one row of W * F numbers

    def in_windows(self, window_NW: npt.NDArray[np.int64]) -> FeatureRows:
        """The same rows, of which each trains with those of its window, gathered batch by batch."""
        place = torch.from_numpy(window_NW)
        return replace(self, window=place if self.streamed else place.to(self.device))

    @classmethod
    def resident(cls, features_NF: torch.Tensor, hour_N: IntN | None = None) -> FeatureRows:
        """Rows that are on the device already.

        Args:
            features_NF: finite numbers.
            hour_N: equal for neighbouring rows of one machine's hour; None: every block is BLOCK_ROWS rows.

        Raises:
            ContractError: rows with NaN or infinity, with their number.
        """
        features_NF = features_NF.detach().float().contiguous()
        refuse_non_finite(features_NF, "training rows")
        return cls(features_NF, features_NF.device, block_starts(len(features_NF), hour_N), streamed=False)

    @classmethod
    def gather(
        cls,
        parts: Iterable[torch.Tensor],
        rows: int,
        bins: int,
        device: torch.device,
        *,
        hour_N: IntN | None = None,
        scratch: Path | None = None,
        resident: bool | None = None,
    ) -> FeatureRows:
        """Rows that come in parts (n, F), in order.

        Args:
            parts: `rows` rows in all.
            rows: N.
            bins: F.
            device: where they train.
            hour_N: see `resident`.
            scratch: folder for the file of rows that do not fit into memory; None: they have to fit.
            resident: whether they fit; None: measured.

        Raises:
            ContractError: rows with NaN or infinity, or another number of rows.
        """
        fits = fits_in_memory(rows * bins * 4, device) if resident is None else resident
        streamed = scratch is not None and not fits
        if scratch is not None and streamed:
            features_NF = torch.from_numpy(scratch_array(scratch, rows, bins))
        else:
            features_NF = torch.empty((rows, bins), device=device)
        filled = 0
        for part in parts:
            if filled + len(part) > rows:
                filled += len(part)
                break
            features_NF[filled : filled + len(part)] = part.to(features_NF.device)
            filled += len(part)
        if filled != rows:
            raise ContractError.of("rows", got=filled, expected=rows, where="training rows")
        refuse_non_finite(features_NF, "training rows")
        return cls(features_NF, device, block_starts(rows, hour_N), streamed)

    def __len__(self) -> int:
        return len(self.features)

    @property
    def bins(self) -> int:
        """F, or W * F of windows."""
        return int(self.features.shape[1]) * (1 if self.window is None else int(self.window.shape[1]))

    def parts(self, rows: int = PART_ROWS) -> Iterator[torch.Tensor]:
        """All rows in their own order, as tensors (n, F) on the device."""
        for begin in range(0, len(self), rows):
            yield self._at(slice(begin, begin + rows))

    def every(self, step: int) -> torch.Tensor:
        """Each so manieth row (n, F), on the device."""
        return self._at(slice(None, None, step))

    def _at(self, rows: slice) -> torch.Tensor:
        if self.window is None:
            return self.features[rows].to(self.device)
        return self.features[self.window[rows]].flatten(1).to(self.device)

    def epoch(self, seed: int, batch_rows: int) -> Iterator[Chunk]:
        """All rows once, in an order that the seed alone decides; chunks hold whole batches, but the last.

        A chunk that is streamed is read while the one before it trains.
        """
        spread = np.random.default_rng(seed)
        row_bytes = 4 * self.bins
        chunk_rows = batch_rows * max(1, CHUNK_BYTES // row_bytes // batch_rows)
        pieces = list(_deal(self.starts_K, len(self), chunk_rows, spread))
        shuffle = torch.Generator(self.device).manual_seed(int(spread.integers(2**62)))
        if not self.streamed:
            for first, length in pieces:
                rows = torch.from_numpy(_expand(first, length)).to(self.device)
                mixed = torch.randperm(len(rows), generator=shuffle, device=self.device)
                yield Chunk(self.features, rows.index_select(0, mixed), self.window)
            return
        with ThreadPoolExecutor(1, "hearken-chunks") as reader:
            coming = [reader.submit(self._read, *pieces[0])] if pieces else []
            for following in [*pieces[1:], None]:
                source = coming.pop().result()
                if following is not None:
                    coming.append(reader.submit(self._read, *following))
                yield Chunk(source, torch.randperm(len(source), generator=shuffle, device=self.device))

    def _read(self, first: npt.NDArray[np.int64], length: npt.NDArray[np.int64]) -> torch.Tensor:
        chunk = torch.empty((int(length.sum()), self.bins), pin_memory=self.device.type == "cuda")
        rows = _expand(first, length)
        if self.window is not None:
            rows = self.window.numpy()[rows].reshape(-1)
        out = chunk.numpy().reshape(len(rows), -1)
        np.take(self.features.numpy(), rows, axis=0, out=out, mode="clip")
        return chunk.to(self.device, non_blocking=True)


def block_starts(rows: int, hour_N: IntN | None) -> npt.NDArray[np.int64]:
    """First rows (K,) of the blocks: whole hours, as many as make BLOCK_ROWS rows.

    >>> block_starts(1000, None).tolist()
    [0, 256, 512, 768]
    >>> block_starts(1000, np.arange(1000) // 300).tolist()
    [0, 300, 600, 900]
    """
    even = np.arange(0, rows, BLOCK_ROWS)
    if hour_N is None or not rows:
        return even
    edges = np.flatnonzero(np.r_[True, hour_N[1:] != hour_N[:-1]])
    place = np.searchsorted(edges, even)
    return np.unique(edges[place[place < len(edges)]])


def refuse_non_finite(features_NF: torch.Tensor, where: str) -> None:
    """Raise a ContractError with the number of rows that hold NaN or infinity."""
    wrong = sum(int((~torch.isfinite(part).all(1)).sum()) for part in features_NF.split(PART_ROWS))
    if wrong:
        got = f"{wrong:,} of {len(features_NF):,} rows with NaN or infinity"
        raise ContractError.of("features", got=got, expected="finite numbers", where=where)


def fits_in_memory(size: int, device: torch.device) -> bool:
    """Whether so many bytes fit into the free memory of a device, with room for what training needs beside them."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
    else:
        free = min(psutil.virtual_memory().available, container_free())
    return size <= free * USABLE_SHARE.get(device.type, 0.5)


def container_free(folder: Path = Path("/sys/fs/cgroup")) -> float:
    """Bytes that the memory limit of a container leaves (cgroup v2), page cache not counted; infinite without one."""
    try:
        limit = (folder / "memory.max").read_text().strip()
        used = int((folder / "memory.current").read_text())
        cached = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())["file"]
        return float("inf") if limit == "max" else int(limit) - used + int(cached)
    except (OSError, ValueError, KeyError):
        return float("inf")


def scratch_array(folder: Path, rows: int, bins: int) -> npt.NDArray[np.float32]:
    """A float32 array (rows, bins) in a file without a name: it goes when the process ends, however it ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder, suffix=".npy") as file:
        return np.lib.format.open_memmap(file.name, mode="w+", dtype=np.float32, shape=(rows, bins))


def _deal(
    starts_K: npt.NDArray[np.int64], rows: int, chunk_rows: int, spread: np.random.Generator
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Blocks in random order, cut into chunks: first row and length of each piece, in the order of the file."""
    blocks = spread.permutation(len(starts_K))
    first = starts_K[blocks]
    length = np.diff(starts_K, append=rows)[blocks]
    ends = np.cumsum(length)
    for begin in range(0, rows, chunk_rows):
        end = min(begin + chunk_rows, rows)
        left, right = np.searchsorted(ends, [begin, end - 1], side="right")
        within = slice(left, right + 1)
        start = np.maximum(ends[within] - length[within], begin)  # a block may lie across two chunks
        piece = first[within] + start - (ends[within] - length[within])
        size = np.minimum(ends[within], end) - start
        order = np.argsort(piece)
        yield piece[order], size[order]


def _expand(first: npt.NDArray[np.int64], length: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Numbers of the rows of pieces.

    >>> _expand(np.array([5, 0]), np.array([2, 3])).tolist()
    [5, 6, 0, 1, 2]
    """
    before = np.cumsum(length) - length
    return np.asarray(np.arange(int(length.sum())) + np.repeat(first - before, length))

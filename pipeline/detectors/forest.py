"""Isolation forest over baseline-relative spectra: fitted by scikit-learn, kept as arrays, scored by onnxruntime.

A row that few random cuts set apart from all others is odd. Every tree is kept as a complete binary tree, level by
level, so that all rows walk down all trees at once, without a branch and without an object of scikit-learn's.

Shape legend: N rows, B rows of a batch, F bins, T trees, D levels of cuts, I = 2^D - 1 cuts, P = 2^(D+1) - 1 places.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pipeline.detectors.base import Arrays, Detector, Fitting, TrainingRows
from pipeline.detectors.baseline import BaselineTable
from pipeline.detectors.tree_ensemble import TreeSums
from pipeline.params import ForestParams
from pipeline.schema import FloatN, FloatNF

ROWS_AT_ONCE, TREES_AT_ONCE = 512, 50  # so few places stay in the cache: 1.2 times the speed of all at once


class ForestDetector(Detector):
    """Isolation forest (Liu, Ting and Zhou, ICDM 2008): score = 2^(-mean path length / c(n)), between 0 and 1.

    c(n) is the mean path length of an unsuccessful search among n rows (eq. 1 there), n the rows that each tree saw.
    The score equals scikit-learn's `-score_samples`. It says nothing of how far beyond all training rows a row lies:
    whatever is odder than the oddest of them scores like it.
    """

    name = "isolation_forest"
    feature: torch.Tensor  # (T, I) the bin that each cut looks at
    threshold: torch.Tensor  # (T, I) a row above it goes right; infinite below a leaf
    path_length: torch.Tensor  # (T, P) mean path length of the training rows that came to each place

    def __init__(
        self,
        baselines: BaselineTable,
        batch_rows: int = 4096,
        device: torch.device | None = None,
        *,
        params: ForestParams | None = None,
    ) -> None:
        super().__init__(baselines, batch_rows, device)
        self.params = params or ForestParams()
        self.typical_length = 1.0
        self._tree_sums: dict[int, TreeSums] = {}  # by number of threads, which decides the last bits of sums

    def fit(self, rows: TrainingRows, fitting: Fitting) -> dict[str, Any]:
        """Grow the trees; no more rows are looked at than all trees together draw."""
        settings, count = self.params, len(rows.spectra)
        wanted = min(count, settings.trees * settings.sample_rows)
        picked = np.sort(np.random.default_rng(fitting.seed).choice(count, wanted, replace=False))
        seen_NF = self.relative(rows.spectra[picked], rows.code[picked])[:, :-1].cpu().numpy()
        sample_rows = min(settings.sample_rows, wanted)
        from sklearn.ensemble import IsolationForest  # a second to import: only where it is used

        grown = IsolationForest(
            n_estimators=settings.trees,
            max_samples=sample_rows,
            max_features=settings.max_features,
            random_state=fitting.seed,
        ).fit(seen_NF)
        self._take(grown)
        self.typical_length = max(float(average_path_length(np.array([sample_rows]))[0]), 1e-12)
        return {"trees": settings.trees, "sample_rows": sample_rows, "levels": self.levels}

    def _take(self, grown: Any) -> None:
        levels = max(1, max(int(tree.tree_.max_depth) for tree in grown.estimators_))
        parts = [
            complete_tree(tree.tree_, bins, levels)
            for tree, bins in zip(grown.estimators_, grown.estimators_features_, strict=True)
        ]
        feature, threshold, path_length = (torch.from_numpy(np.stack(part)) for part in zip(*parts, strict=True))
        self.feature, self.threshold = feature.to(self.device), threshold.to(self.device)
        self.path_length = path_length.to(self.device)
        self._tree_sums.clear()

    @property
    def levels(self) -> int:
        """D: cuts on the longest path."""
        return int(self.feature.shape[1] + 1).bit_length() - 1

    def _walk(self, bins_FB: torch.Tensor, trees: slice) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Down some trees, level by level: the bin of the cut, and the places before and after it, each (T, B)."""
        feature, threshold = self.feature[trees], self.threshold[trees]
        place = torch.zeros((len(feature), bins_FB.shape[1]), dtype=torch.int64, device=bins_FB.device)
        for level in range(self.levels):
            first = 2**level - 1
            cuts = slice(first, 2 * first + 1)
            bin_TB = feature[:, cuts].gather(1, place)
            after = 2 * place + (bins_FB.gather(0, bin_TB) > threshold[:, cuts].gather(1, place))
            yield bin_TB, place + first, after + 2 * first + 1
            place = after

    def _blocks(self, relative_BG: torch.Tensor) -> Iterator[tuple[torch.Tensor, list[slice]]]:
        trees = [slice(first, first + TREES_AT_ONCE) for first in range(0, len(self.feature), TREES_AT_ONCE)]
        for part_BG in relative_BG.split(ROWS_AT_ONCE):
            yield part_BG[:, :-1].T.contiguous(), trees

    def score_batch(self, spectra_BF: torch.Tensor, relative_BG: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        """2^(-mean path length / c(n))."""
        return self.score_of(self.path_lengths(relative_BG))

    def score_of(self, length_B: torch.Tensor) -> torch.Tensor:
        """Scores (B,) from the sums of path lengths over the trees."""
        return torch.exp2(-length_B.double() / (len(self.feature) * self.typical_length))

    def path_lengths(self, relative_BG: torch.Tensor) -> torch.Tensor:
        """Sum (B,) over the trees of the path lengths at the places where rows end.

        On a CPU by onnxruntime, which walks faster (benchmarks/onnx_speed.py).
        """
        if relative_BG.device.type != "cpu":
            return self.walked_lengths(relative_BG)
        threads = torch.get_num_threads()
        if threads not in self._tree_sums:
            trees = self.feature, self.threshold, self.path_length
            self._tree_sums[threads] = TreeSums(*trees, bins=self.baselines.bins)
        return self._tree_sums[threads](relative_BG[:, :-1])

    def walked_lengths(self, relative_BG: torch.Tensor) -> torch.Tensor:
        """The same sums by torch, on any device; those of onnxruntime to float32's rounding."""
        totals = []
        for bins_FB, parts in self._blocks(relative_BG):
            total_B = torch.zeros(bins_FB.shape[1], dtype=torch.float64, device=bins_FB.device)
            for trees in parts:
                for _, _, leaf in self._walk(bins_FB, trees):  # noqa: B007  the last one is the leaf
                    pass
                total_B += self.path_length[trees].gather(1, leaf).double().sum(0)
            totals.append(total_B)
        return torch.cat(totals)

    def explain_batch(self, spectra_BF: torch.Tensor, relative_BG: torch.Tensor) -> torch.Tensor:
        """Shares of the score by how much the cuts in each bin shortened the row's paths.

        A cut changes the mean path length of the training rows that share the row's way; the changes along a path sum
        to its length (the decomposition of tree predictions of Saabas 2014, with path length as what is predicted).
        Each bin's changes are summed over all trees, and those that make paths shorter share the score.
        """
        shortened = []
        for bins_FB, parts in self._blocks(relative_BG):
            shortened_FB = torch.zeros_like(bins_FB, dtype=torch.float64)
            for trees in parts:
                length = self.path_length[trees]
                for bin_TB, before, after in self._walk(bins_FB, trees):
                    change_TB = length.gather(1, before) - length.gather(1, after)
                    shortened_FB.scatter_add_(0, bin_TB, change_TB.double())
            shortened.append(shortened_FB.T)
        shares_BF = torch.cat(shortened).clamp_min(1e-12)
        return self.score_batch(spectra_BF, relative_BG)[:, None] * shares_BF / shares_BF.sum(1, keepdim=True)

    def arrays(self) -> Arrays:
        """The trees."""
        return {
            "feature": self.feature.int().cpu().numpy(),
            "threshold": self.threshold.cpu().numpy(),
            "path_length": self.path_length.cpu().numpy(),
        }

    def restore(self, arrays: Arrays, settings: dict[str, Any]) -> None:
        """Load the trees."""
        self.params = ForestParams.model_validate(settings["params"])
        self.typical_length = float(settings["typical_length"])
        self.feature = torch.from_numpy(arrays["feature"].astype(np.int64)).to(self.device)
        self.threshold = torch.from_numpy(np.array(arrays["threshold"])).to(self.device)
        self.path_length = torch.from_numpy(np.array(arrays["path_length"])).to(self.device)

    def settings(self) -> dict[str, Any]:
        """Parameters, and c(n)."""
        return {"params": self.params.model_dump(mode="json"), "typical_length": self.typical_length}


def average_path_length(rows_K: npt.NDArray[Any]) -> FloatN:
    """c(n): mean path length of an unsuccessful search in a binary tree of n rows (Liu et al. 2008, eq. 1).

    >>> average_path_length(np.array([1, 2, 256])).round(3).tolist()
    [0.0, 1.0, 10.245]
    """
    many = np.maximum(rows_K.astype(np.float64), 3.0)
    length_K = 2 * (np.log(many - 1) + np.euler_gamma) - 2 * (many - 1) / many
    return np.asarray(np.where(rows_K > 2, length_K, (rows_K == 2).astype(np.float64)))


def complete_tree(tree: Any, bins: npt.NDArray[Any], levels: int) -> tuple[npt.NDArray[np.int64], FloatNF, FloatNF]:
    """A tree of scikit-learn's as a complete one: bin and threshold (I,) of each cut, path length (P,) at each place.

    The children of place p are 2p + 1 and 2p + 2. Below a leaf every row goes left and the path length stays.

    Args:
        tree: `tree_` of a fitted extra tree.
        bins: the bin behind each of its features.
        levels: D, at least the tree's depth.
    """
    left, right, rows = tree.children_left, tree.children_right, tree.n_node_samples
    length = tree.compute_node_depths() - 1.0 + average_path_length(rows)
    for parent in range(tree.node_count - 1, -1, -1):  # it stands before its children
        if left[parent] >= 0:
            below = np.array([left[parent], right[parent]])
            length[parent] = (rows[below] * length[below]).sum() / rows[parent]
    node, feature, threshold, path_length = np.zeros(1, np.int64), [], [], [length[:1]]
    for _ in range(levels):
        inner = left[node] >= 0
        feature.append(np.where(inner, bins[np.maximum(tree.feature[node], 0)], 0))
        threshold.append(np.where(inner, tree.threshold[node], np.inf))
        node = np.stack([np.where(inner, left[node], node), np.where(inner, right[node], node)], axis=1).ravel()
        path_length.append(length[node])
    return (
        np.concatenate(feature).astype(np.int64),
        rounded_down(np.concatenate(threshold)),
        np.concatenate(path_length).astype(np.float32),
    )


def rounded_down(values: FloatN) -> FloatNF:
    """The largest float32 that is no larger: a float32 is above it exactly where it is above the float64.

    >>> float(rounded_down(np.array([0.1]))[0]) < 0.1 < float(np.float32(0.1))
    True
    """
    near = values.astype(np.float32)
    return np.where(near > values, np.nextafter(near, np.float32(-np.inf)), near).astype(np.float32)

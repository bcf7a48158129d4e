"""Trees as ONNX's TreeEnsembleRegressor, which onnxruntime walks several times faster than torch's gathers do.

Shape legend: N rows, F bins, T trees, I cuts and P = 2 I + 1 places of a complete tree (see pipeline.detectors.forest).
"""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper

OPSETS = {"": 20, "ai.onnx.ml": 3}
IR_VERSION = 10


def tree_node(
    feature_TI: torch.Tensor, threshold_TI: torch.Tensor, value_TP: torch.Tensor, source: str, target: str
) -> onnx.NodeProto:
    """A node from (N, F) to the sum (N, 1) over trees of the value at the place where a row ends.

    Args:
        feature_TI: the bin that each cut of a complete tree looks at; the children of place p are 2p + 1 and 2p + 2.
        threshold_TI: a row above it goes right; infinite below a leaf, where every row goes left and the value stays.
        value_TP: value of each place.
        source: name of the rows.
        target: name of the sums.
    """
    feature, threshold, value = (part.cpu().numpy() for part in (feature_TI, threshold_TI, value_TP))
    trees, cuts = feature.shape
    cut_TP = np.zeros((trees, 2 * cuts + 1), bool)
    cut_TP[:, :cuts] = np.isfinite(threshold)
    there_TP = np.zeros_like(cut_TP)
    there_TP[:, 0] = True
    for place in range(cuts):
        there_TP[:, 2 * place + 1] = there_TP[:, 2 * place + 2] = there_TP[:, place] & cut_TP[:, place]
    tree_K, place_K = np.nonzero(there_TP)
    is_cut_K = cut_TP[tree_K, place_K]
    within_K = np.minimum(place_K, cuts - 1)
    leaf_K = ~is_cut_K
    return helper.make_node(
        "TreeEnsembleRegressor",
        [source],
        [target],
        domain="ai.onnx.ml",
        n_targets=1,
        aggregate_function="SUM",
        nodes_treeids=tree_K,
        nodes_nodeids=place_K,
        nodes_featureids=np.where(is_cut_K, feature[tree_K, within_K], 0),
        nodes_modes=np.where(is_cut_K, "BRANCH_LEQ", "LEAF").tolist(),
        nodes_values=np.where(is_cut_K, threshold[tree_K, within_K], 0.0),
        nodes_truenodeids=np.where(is_cut_K, 2 * place_K + 1, 0),
        nodes_falsenodeids=np.where(is_cut_K, 2 * place_K + 2, 0),
        target_treeids=tree_K[leaf_K],
        target_nodeids=place_K[leaf_K],
        target_ids=np.zeros(int(leaf_K.sum()), np.int64),
        target_weights=value[tree_K[leaf_K], place_K[leaf_K]],
    )


class TreeSums:
    """Sums over trees by onnxruntime on the CPU: (N, F) float32 -> (N,) float32.

    A row's sum depends on the number of rows and threads, in its last bits: call it with batches of one size.

    >>> feature, threshold = torch.zeros(1, 1, dtype=torch.int64), torch.tensor([[0.5]])
    >>> TreeSums(feature, threshold, torch.tensor([[0.0, 1.0, 2.0]]), bins=1)(torch.tensor([[0.5], [0.6]]))
    tensor([1., 2.])
    """

    def __init__(
        self, feature_TI: torch.Tensor, threshold_TI: torch.Tensor, value_TP: torch.Tensor, *, bins: int
    ) -> None:
        rows = helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["N", bins])
        sums = helper.make_tensor_value_info("sums", TensorProto.FLOAT, ["N", 1])
        node = tree_node(feature_TI, threshold_TI, value_TP, "rows", "sums")
        graph = helper.make_graph([node], "trees", [rows], [sums])
        opsets = [helper.make_opsetid(domain, version) for domain, version in OPSETS.items()]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
        options.log_severity_level = 4
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # see OMP_WAIT_POLICY in flows
        self._session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def __call__(self, rows_NF: torch.Tensor) -> torch.Tensor:
        """Sums (N,)."""
        (sums_N1,) = self._session.run(None, {"rows": rows_NF.contiguous().numpy()})
        return torch.from_numpy(sums_N1[:, 0])

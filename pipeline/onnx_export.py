"""A release's detectors as ONNX: raw spectra and their rows of the baseline table in, scores out, one file each.

For a plant's edge devices: the file needs onnxruntime and nothing of Hearken. It holds the logarithm, the baseline
table, the network or model, and the step that makes scores against the fleet's baseline comparable; its metadata and
the JSON beside it tell which row of the table belongs to which machine, and where the tiers' thresholds are. All is
float32 (a score's last sums are float64), whatever precision the release scores in.

Shape legend: N rows, F bins, R rows of the baseline table, Q quantiles.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import onnxruntime
import torch
from torch import nn

from pipeline.detectors import Detector, NeuralDetector
from pipeline.detectors.absolute_limit import AbsoluteLimitDetector
from pipeline.detectors.forest import ForestDetector
from pipeline.detectors.networks import use_matrices
from pipeline.detectors.tree_ensemble import OPSETS, tree_node
from pipeline.errors import HearkenError, ReleaseError, UserError
from pipeline.release import Release
from pipeline.schema import BASELINE_NAMES, Baseline, FloatN, FloatNF
from pipeline.store import atomic_folder, write_json
from pipeline.tails import ScoreScale

MODEL, DESCRIPTION = "scorer.onnx", "scorer.json"
INPUTS, OUTPUTS = ("spectrum", "baseline_row"), ("score", "comparable")
TREE_ROWS, TREE_SUMS = "tree_rows", "tree_sums"
WRONG = 1e-2  # of a score, or of 1 where it is smaller: far above what another library's last bits cost
LARGEST_FILE = 2**31 - 2**24  # one protobuf message holds no more; the rest is the graph and its metadata
CHECKED_ROWS = 512


class WholeScorer(nn.Module):
    """All that turns raw spectra into scores, as one module that can be traced.

    Args:
        detector: fitted, on the CPU.
        scale: what makes scores against a wider baseline comparable; None: they stay as they are.
    """

    def __init__(self, detector: Detector, scale: ScoreScale | None = None) -> None:
        super().__init__()
        self.detector = detector
        for name, part in vars(detector).items():
            if isinstance(part, nn.Module):
                self.add_module(f"part_{name}", part)  # a parameter that nobody owns cannot be traced
        rows = np.arange(len(detector.baselines.location), dtype=np.int32)
        self.rows, self.is_spectrum = len(rows), sees_spectra(detector)
        self.tables = detector.baselines.tables(torch.device("cpu"))
        self.state_R = torch.from_numpy(detector.baselines.states(rows))
        self.matches: dict[Baseline, QuantileMatch] = {}
        scale = scale or ScoreScale()
        if len(scale.own_to):
            self.matches[Baseline.FLEET] = QuantileMatch(scale.fleet_from, scale.own_to)
            self.matches[Baseline.SHRUNK] = QuantileMatch(scale.shrunk_from, scale.own_to)
        self.level_R = torch.from_numpy(scale.level.copy()) if len(scale.level) else None

    def forward(
        self, spectrum: torch.Tensor, baseline_row: torch.Tensor, tree_sums: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, ...]:
        """Score and comparable score (N,); NaN for a spectrum that is no finite, non-negative one.

        With `tree_sums` (N, 1), which onnxruntime's own node will compute, also the rows that this node needs.
        """
        usable_N = spectrum.square().sum(1) <= torch.finfo(torch.float32).max
        if self.is_spectrum:
            usable_N = usable_N & (spectrum.amin(1) >= 0)
        # a negative row would count from the table's end: beyond the table it is refused
        row_N = torch.where(baseline_row < 0, self.rows, baseline_row)
        relative_NG = self.detector.baselines.relative(spectrum, row_N, self.tables)
        if tree_sums is None:
            score_N = self.detector.score_batch(spectrum, relative_NG).double()
        else:
            score_N = cast(ForestDetector, self.detector).score_of(tree_sums[:, 0])
        comparable_N = score_N
        for baseline, match in self.matches.items():
            comparable_N = torch.where(self.state_R[row_N] == baseline.value, match(score_N), comparable_N)
        if self.level_R is not None:
            comparable_N = comparable_N / self.level_R[row_N]
        known_N = torch.where(usable_N, 0.0, torch.nan)
        scores = score_N.float() + known_N, comparable_N.float() + known_N
        return scores if tree_sums is None else (*scores, relative_NG[:, :-1])


class QuantileMatch(nn.Module):
    """`pipeline.tails.match_quantiles` in operations that ONNX has."""

    def __init__(self, source: FloatN, target: FloatN) -> None:
        super().__init__()
        step = np.diff(source)
        slope = np.divide(np.diff(target), step, out=np.zeros_like(step), where=step > 0)
        beyond = target[-1] / source[-1] if source[-1] > 0 else 1.0
        self.beyond = float(beyond)
        self.source_Q, self.target_Q = torch.from_numpy(source.copy()), torch.from_numpy(target.copy())
        self.slope_Q = torch.from_numpy(np.r_[slope, 0.0])

    def forward(self, score_N: torch.Tensor) -> torch.Tensor:
        """Scores (N,) moved so that the source's quantiles become the target's."""
        # not clamp: the exporter rounds the limits of float64 to float32
        first, last = self.source_Q[0], self.source_Q[-1]
        inside_N = torch.where(score_N < first, first, torch.where(score_N > last, last, score_N))
        below_N = (inside_N[:, None] >= self.source_Q[1:]).sum(1)
        moved_N = self.target_Q[below_N] + self.slope_Q[below_N] * (inside_N - self.source_Q[below_N])
        return torch.where(score_N > last, score_N * self.beyond, moved_N)


def scorer_model(detector: Detector, *, scale: ScoreScale | None = None, release: str = "") -> onnx.ModelProto:
    """A fitted detector as an ONNX model; the same detector gives the same bytes.

    Inputs `spectrum` (N, F) float32 and `baseline_row` (N,) int64, outputs `score` and `comparable` (N,) float32.

    Raises:
        ReleaseError: more than an ONNX file may hold, or a detector of windows, which no single row can be scored by.
    """
    if detector.rows_seen > 1:
        got = f"{detector.name}, which sees {detector.rows_seen} rows at once"
        raise ReleaseError(f"export: got {got}, expected a detector of single rows.")
    size = 2 * detector.baselines.location.nbytes + sum(array.nbytes for array in detector.arrays().values())
    if size > LARGEST_FILE:
        got = f"{detector.name} with {size / 2**30:.1f} GiB of weights and baselines"
        raise ReleaseError(f"export: got {got}, expected below 2 GiB (the limit of ONNX files).")
    model = _traced(WholeScorer(as_float32(detector), scale))
    _forget_the_tracer(model.graph)
    model.producer_name, model.producer_version = "hearken", ""
    baselines = detector.baselines.to_json()
    facts = {
        "hearken.detector": detector.name,
        "hearken.bins": str(detector.baselines.bins),
        "hearken.release": release,
        # plain ASCII: names come from data and hold anything
        "hearken.baselines": json.dumps({name: baselines[name] for name in ("condition_column", "conditions", "keys")}),
    }
    for key, value in sorted(facts.items()):
        model.metadata_props.add(key=key, value=value)
    onnx.checker.check_model(model, full_check=True)
    return model


def scorer_bytes(model: onnx.ModelProto) -> bytes:
    """The bytes of a model's file."""
    return bytes(model.SerializeToString(deterministic=True))


def open_scorer(model: Path | bytes, threads: int = 1) -> onnxruntime.InferenceSession:
    """A session on the CPU that scores; its own messages are silenced, its errors are raised."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # as OMP_WAIT_POLICY=passive: see flows
    source = model if isinstance(model, bytes) else str(model)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def run_scorer(
    session: onnxruntime.InferenceSession, spectra_NF: FloatNF, row_N: np.ndarray
) -> tuple[FloatNF, FloatNF]:
    """Score and comparable score, float32 (N,) each."""
    score_N, comparable_N = session.run(
        list(OUTPUTS), dict(zip(INPUTS, (spectra_NF, row_N.astype(np.int64)), strict=True))
    )
    return score_N, comparable_N


@dataclass(frozen=True)
class Difference:
    """How far two ways of scoring the same rows lie apart: the median and the largest, of a score or of 1."""

    median: float
    largest: float


@dataclass(frozen=True)
class Exported:
    """A file, and how far its scores lie from the release's."""

    path: Path
    difference: Difference


def export_release(release: Release, out: Path, names: Sequence[str] = ()) -> list[Exported]:
    """Write `<detector>/scorer.onnx` and `<detector>/scorer.json` of a release's members into a new folder.

    Args:
        release: loaded on the CPU.
        out: where nothing is yet, or an empty folder.
        names: of detectors; none: all members.

    Raises:
        UserError: something is there already, or it is inside the release; or a detector that is no member.
        ReleaseError: see scorer_model.
        HearkenError: a file does not score as its detector does, on rows around every baseline; nothing is written.
    """
    unknown = [name for name in names if name not in release.detectors]
    if unknown:
        got, members = ", ".join(unknown), ", ".join(release.detectors)
        raise UserError(f"--detector: got {got}, expected members of release {release.id}: {members}.")
    if out.is_symlink() or (out.exists() and (not out.is_dir() or any(out.iterdir()))):
        raise UserError(f"--out: got {out}, where something is already, expected a new or an empty folder.")
    if out.resolve().is_relative_to(release.folder.resolve()):
        raise UserError(f"--out: got {out}, which is inside the release, expected a place that is not: it has an id.")
    exported = []
    with atomic_folder(out) as folder:
        for name in dict.fromkeys(names) or release.detectors:
            detector = release.detectors[name]
            content = scorer_bytes(scorer_model(detector, scale=release.tails.table(name).scale, release=release.id))
            apart = compared(detector, content)
            place = Path(detector.name)  # one of the known names, whatever the release calls its member
            (folder / place).mkdir()
            (folder / place / MODEL).write_bytes(content)
            write_json(folder / place / DESCRIPTION, description(release, name, content))
            exported.append(Exported(out / place / MODEL, apart))
    return exported


def description(release: Release, name: str, content: bytes) -> dict[str, Any]:
    """What a device needs beside the model: what goes in and comes out, thresholds, policy, and whose row is whose."""
    detector, calibration = release.detectors[name], release.calibration
    baselines, fleet = detector.baselines, release.fleet
    tiers = {tier: calibration["detectors"][name][tier] for tier in ("low", "page")}
    rows = np.arange(1 + len(baselines.conditions), len(baselines.location), dtype=np.int32)
    states = baselines.states(rows)
    return {
        "format": 1,
        "release": release.id,
        "detector": name,
        "raises_alerts": name == release.detector,
        "sha256": hashlib.sha256(content).hexdigest(),
        "inputs": {
            "spectrum": {
                "type": "float32",
                "shape": ["N", baselines.bins],
                "unit": fleet.unit,
                "kind": fleet.kind,
                "band_edges_hz": fleet.band_edges_hz,
                "axes": fleet.axes,
                "feature_names": fleet.feature_names,
            },
            "baseline_row": {"type": "int64", "shape": ["N"], "from": 0, "below": len(baselines.location)},
        },
        "outputs": {
            "score": {"type": "float32", "shape": ["N"], "meaning": "higher is more anomalous; NaN: unusable spectrum"},
            "comparable": {
                "type": "float32",
                "shape": ["N"],
                "meaning": "the score on the fleet's scale, whatever baseline; compare it with the thresholds",
            },
        },
        "tiers": {
            tier: {"percentile": values["percentile"], "exceeds": values["threshold"]} for tier, values in tiers.items()
        },
        "policy": calibration["policy"],
        "precision": {"file": "float32", "release": detector.precision},
        "baselines": {
            "condition_column": baselines.condition_column,
            "fleet": 0,
            "fleet_in_condition": {condition: row for row, condition in enumerate(baselines.conditions, start=1)},
            # an epoch of -1 serves every epoch of the machine that has no row
            "machines": [
                {
                    "row": row,
                    "machine_id": machine,
                    "epoch": epoch,
                    "condition": condition,
                    "baseline": BASELINE_NAMES[state],
                }
                for row, (machine, epoch, condition), state in zip(rows.tolist(), baselines.keys, states, strict=True)
            ],
        },
        "epochs": release.epochs.to_json(),
    }


def _traced(scorer: WholeScorer) -> onnx.ModelProto:
    """The module as torch's exporter writes it, without what it says while it does."""
    example = [torch.ones(4, scorer.detector.baselines.bins), torch.zeros(4, dtype=torch.int64)]
    inputs, outputs = list(INPUTS), list(OUTPUTS)
    if isinstance(scorer.detector, ForestDetector):
        example.append(torch.ones(4, 1))
        inputs.append(TREE_SUMS)
        outputs.append(TREE_ROWS)
    with _quiet(), torch.inference_mode(False), torch.no_grad():
        program = torch.onnx.export(
            scorer.eval(),
            tuple(example),
            input_names=inputs,
            output_names=outputs,
            dynamic_shapes={name: {0: "N"} for name in inputs},
            opset_version=OPSETS[""],
            external_data=False,
            verbose=False,
            optimize=False,  # it loses the limits of a second clamp; runtimes do the same when they load a file
        )
    if program is None:
        raise HearkenError(f"export: torch wrote no ONNX model of {scorer.detector.name}.")
    model = program.model_proto
    if isinstance(scorer.detector, ForestDetector):
        _join_trees(model, scorer.detector)
    return model


def _join_trees(model: onnx.ModelProto, forest: ForestDetector) -> None:
    """Put the node that walks the trees between the rows that the model gives out and the sums that it takes."""
    trees = tree_node(forest.feature, forest.threshold, forest.path_length, TREE_ROWS, TREE_SUMS)
    for values in (model.graph.input, model.graph.output):
        kept = [value for value in values if value.name not in (TREE_ROWS, TREE_SUMS)]
        del values[:]
        values.extend(kept)
    early, late, after_trees = [], [], {TREE_SUMS}
    for node in model.graph.node:
        if after_trees & set(node.input):
            after_trees |= set(node.output)
            late.append(node)
        else:
            early.append(node)
    del model.graph.node[:]
    model.graph.node.extend([*early, trees, *late])
    model.opset_import.add(domain="ai.onnx.ml", version=OPSETS["ai.onnx.ml"])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter warns of torchvision, of names it chose, and of its own parts that will go."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


def _forget_the_tracer(graph: onnx.GraphProto) -> None:
    """Remove the exporter's notes: they hold paths of this machine, and would make the bytes differ."""
    del graph.metadata_props[:], graph.value_info[:]
    for item in (*graph.node, *graph.initializer, *graph.input, *graph.output):
        del item.metadata_props[:]
        item.doc_string = ""
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                _forget_the_tracer(inner)


def as_float32(detector: Detector) -> Detector:
    """The same fitted detector, scoring in float32 and with plain convolutions."""
    twin = copy.copy(detector)
    twin.precision = "float32"
    if isinstance(twin, NeuralDetector):
        twin.network = copy.deepcopy(twin.network)
        use_matrices(twin.network, "never")
    return twin


def compared(detector: Detector, content: bytes) -> Difference:
    """A file's scores beside the detector's, in the detector's own precision, on rows around every baseline.

    Raises:
        HearkenError: more than one score in a hundred is another than float32's.
    """
    spectra_NF, row_N = rows_around(detector)
    got_N, _ = run_scorer(open_scorer(content), spectra_NF, row_N)
    from_float32_N = _apart(got_N, as_float32(detector).score(spectra_NF, row_N))
    if not np.percentile(from_float32_N, 99) <= WRONG:
        got = f"scores of {detector.name} that differ by {np.percentile(from_float32_N, 99):.1e} (99th percentile)"
        raise HearkenError(f"export: got {got} from torch's, expected at most {WRONG:.0e}.")
    apart_N = _apart(got_N, detector.score(spectra_NF, row_N))
    return Difference(float(np.median(apart_N)), float(apart_N.max()))


def _apart(got_N: FloatNF, expected_N: FloatN) -> FloatN:
    return np.asarray(np.abs(got_N - expected_N) / np.maximum(np.abs(expected_N), 1.0))


def sees_spectra(detector: Detector) -> bool:
    """Whether its input is magnitudes, never negative."""
    return detector.baselines.log or isinstance(detector, AbsoluteLimitDetector)


def rows_around(detector: Detector, rows: int = CHECKED_ROWS) -> tuple[FloatNF, np.ndarray]:
    """Spectra (N, F) near baselines of the table and far from them, and the baselines' rows (N,)."""
    table = detector.baselines
    generator = np.random.default_rng(1)
    row_N = np.linspace(0, len(table.location) - 1, rows).round().astype(np.int32)
    deviations_NF = generator.standard_normal((rows, table.bins)) * generator.uniform(0.5, 4, (rows, 1))
    scale_NF = table.scale[row_N, :-1]
    features_NF = table.location[row_N, :-1] + np.where(np.isfinite(scale_NF), scale_NF, 1.0) * deviations_NF
    if table.log:
        features_NF = np.exp(np.clip(features_NF, -30, 30))
    elif sees_spectra(detector):
        features_NF = np.abs(features_NF)
    return features_NF.astype(np.float32), row_N

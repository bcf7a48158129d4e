"""What all networks share: how they are built, trained again where they die, and how they score and explain.

Shape legend: N rows, B rows of a batch, F bins, G = F + 1 features, L latent.
"""

from __future__ import annotations

from abc import abstractmethod
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from pipeline.detectors.base import Arrays, Detector, Fitting, TrainingRows, load_arrays
from pipeline.detectors.baseline import BaselineTable
from pipeline.detectors.codes import Lessons, mode_loss
from pipeline.detectors.latent import Tail, code_statistics, nearest_codes, residual_variance
from pipeline.detectors.networks import Matrices, make_layers, use_matrices
from pipeline.detectors.objectives import BIN_LOG_VARIANCE, INPUT_LIMIT, bounded
from pipeline.engine import FeatureRows, autocast, train_network
from pipeline.engine.checkpoint import tensors_below
from pipeline.engine.rows import refuse_non_finite
from pipeline.errors import ReleaseError
from pipeline.params import NetworkParams
from pipeline.schema import FloatN, FloatNF

PART_ROWS = 65_536
PROBE_ROWS = 1024  # spread over the training rows: they tell whether a code is dead
FIRST_EPOCHS = 3  # after which a dead network is given up
ROUNDING = 1e-6  # of float32: codes or outputs that differ by less are the same for all rows
CODE_ROWS = 1_000_000  # spread over the training rows: a covariance of more changes in the fourth digit
NEAR_CODES = 2000  # of training rows, that a row is held against where neighbours count
MIN_HEALTHY = 100  # validation rows that alone say what residuals and distances are usual
SEED_STEP = 1_000_003  # from one try to the next
VARIANCE_PACE = 5.0  # log variances are larger than weights, and in a few hundred small steps they would not arrive
TINY = 1e-30  # weight of a bin that has none
SCORED_LIMIT = 1e15  # robust deviations: the square of more is no float32


class Network(nn.Module):
    """Encoder, decoder, the variance of each bin where the loss learns it, and a head where failures teach modes."""

    def __init__(
        self, params: NetworkParams, width: int, encoder: nn.Module, decoder: nn.Module, modes: int = 0
    ) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        if params.loss == "gaussian":
            self.raw_log_variance = nn.Parameter(torch.zeros(width))
        if modes:
            self.mode_head = nn.Linear(params.latent, modes)

    def bin_log_variance(self) -> torch.Tensor | None:
        """(F,) within BIN_LOG_VARIANCE; None where the loss learns none."""
        raw = getattr(self, "raw_log_variance", None)
        return None if raw is None else bounded(VARIANCE_PACE * raw, BIN_LOG_VARIANCE)


@dataclass(frozen=True)
class Evidence:
    """What speaks against a row: in each bin (B, F), non-negative, and in its code (B,); and the code's output."""

    residual_BF: torch.Tensor
    latent_B: torch.Tensor
    output_BF: torch.Tensor


class DeadNetwork(Exception):
    """All rows have the same code, or the same output."""


class NeuralDetector(Detector):
    """What both autoencoders share.

    Scores (`score`): `residual`, the mean over the bins of the squared residual, each in units of its healthy variance
    (`residual: weighted`; a bin that the network explains badly on healthy rows says little) or as it is
    (`mean_squared`); `latent`, the squared Mahalanobis distance of the code from the mean, or from the nearest codes of
    healthy rows (`code_distance`); `combined`, the larger of both in the unit in which they can be compared: minus the
    log of the share of healthy rows beyond (the smallest tail probability decides, Tippett's method). The residual
    alone misses a fault that moves along the learned surface.
    """

    network: Network

    def __init__(
        self,
        baselines: BaselineTable,
        batch_rows: int = 4096,
        device: torch.device | None = None,
        *,
        params: NetworkParams | None = None,
    ) -> None:
        super().__init__(baselines, batch_rows, device)
        self.params = params or self.default_params()
        self.fine_tunes = False  # its first weights have been trained before
        self.modes: tuple[str, ...] = ()  # that a head on the code tells
        self._lessons: Lessons | None = None  # while it trains
        self._statistics: dict[str, torch.Tensor] = {}
        self._tails: dict[str, Tail] = {}

    @classmethod
    @abstractmethod
    def default_params(cls) -> NetworkParams:
        """Parameters where none are given."""

    @abstractmethod
    def encoder_outputs(self) -> int:
        """Width of the encoder's head."""

    @abstractmethod
    def loss(self, x_BF: torch.Tensor, epoch: int, noise: torch.Generator | None) -> dict[str, torch.Tensor]:
        """Terms of the loss, each a mean over rows; `loss` is what is minimised; no noise: an evaluation."""

    @property
    def width(self) -> int:
        """Numbers that the network sees at once: the bins of a row, or of all rows of a window."""
        return self.rows_seen * self.baselines.bins

    def layers(self) -> tuple[nn.Module, nn.Module]:
        """Encoder and decoder, not yet on the device."""
        return make_layers(self.params, self.baselines.bins, self.encoder_outputs())

    def healthy_rows(self, rows: TrainingRows) -> torch.Tensor:
        """Validation rows (n, F) relative to their baselines."""
        return self.relative(rows.validation, rows.validation_code)[:, :-1]

    def rows_of(self, relative_BG: torch.Tensor) -> torch.Tensor:
        """What the network sees (B, F) of features relative to their baselines."""
        return relative_BG[:, :-1]

    def per_bin(self, share_BF: torch.Tensor) -> torch.Tensor:
        """Shares (B, F) of each bin of what the network sees."""
        return share_BF

    @property
    def compiles(self) -> bool:
        """May torch compile the network, where the settings ask for it?"""
        return True

    def build(self) -> None:
        """Make the layers (their weights come from torch's current random state)."""
        network = Network(self.params, self.width, *self.layers(), len(self.modes))
        self.network = network.to(self.device).eval()
        where: Matrices = "where_faster" if self.device.type == "cpu" else "never"
        use_matrices(self.network, "always" if self.precision == "bfloat16" else where)

    def code(self, x_BF: torch.Tensor) -> torch.Tensor:
        """(B, L) deterministic codes of rows in robust deviations."""
        return self.activate(self._encoded(x_BF.clamp(-INPUT_LIMIT, INPUT_LIMIT)))

    def activate(self, outputs_BO: torch.Tensor) -> torch.Tensor:
        """(B, L) codes of what the encoder's head says, each row's for itself."""
        return outputs_BO[:, : self.params.latent]

    def decode(self, code_BL: torch.Tensor) -> torch.Tensor:
        """(B, F) what codes say that rows are, in robust deviations."""
        with autocast(self.device, self.precision):
            output: torch.Tensor = self.network.decoder(code_BL)
        return output.float()

    def _encoded(self, held_BF: torch.Tensor) -> torch.Tensor:
        """What the encoder's head says of rows within INPUT_LIMIT."""
        with autocast(self.device, self.precision):
            outputs: torch.Tensor = self.network.encoder(held_BF)
        return outputs.float()

    def fit(self, rows: TrainingRows, fitting: Fitting) -> dict[str, Any]:
        """Train with early stopping on the validation rows; the best weights are kept.

        With `fitting.base` training starts from the weights that stand there, at a lower learning rate and for fewer
        epochs; what is usual (codes, residuals, distances) is fitted on these rows alone. A network that is dead is
        trained again from another seed and random weights, at most `restarts` times.

        Returns:
            The history of the last training (see `train_network`), with `restarts`, `fine_tuned` and all warnings.

        Raises:
            ContractError: rows with NaN or infinity.
            ReleaseError: the weights at `fitting.base` are of another architecture than the parameters say.
            HearkenError: no epoch ended with a finite loss.
        """
        train = self.feature_rows(rows, fitting, INPUT_LIMIT)
        probe_BF = train.every(max(1, len(train) // PROBE_ROWS))
        validation_NF = self.healthy_rows(rows)
        warnings = [*self._doubts(probe_BF), *self._take_lessons(rows)]
        history = self._train(train, validation_NF.clamp(-INPUT_LIMIT, INPUT_LIMIT), probe_BF, fitting, warnings)
        healthy_NF = validation_NF if len(validation_NF) >= MIN_HEALTHY else torch.cat([validation_NF, probe_BF])
        with torch.inference_mode():
            found = self._fit_statistics(train, healthy_NF) | self._what_was_taught()
        self._lessons = None
        return history | found | {"warnings": [*warnings, *history["warnings"], *self._findings(found)]}

    def _doubts(self, probe_BF: torch.Tensor) -> list[str]:
        """Warnings before training: of rows without variation, of a network that can copy."""
        doubts = []
        if not _varies(probe_BF):
            doubts.append("The training rows do not vary in any bin: there is nothing that a network could learn.")
        bins, latent = self.width, self.params.latent
        if latent >= bins and not self._is_regularised():
            doubts.append(
                f"Identity mapping: the code ({latent}) is not narrower than the input ({bins} bins) and nothing "
                f"regularises it: the network can copy faults as well as health. Lower train.{self.name}.latent, or "
                f"set {self._what_holds_a_code()} of train.{self.name}."
            )
        return doubts

    def _is_regularised(self) -> bool:
        return self.params.noise.any

    def _what_holds_a_code(self) -> str:
        """Settings that keep a wide one from copying."""
        return "noise"

    def _take_lessons(self, rows: TrainingRows) -> list[str]:
        """Hold the rows that teach; warnings where there is nothing to tell apart."""
        self.modes, self._lessons, taught = (), None, rows.taught
        if self.params.supervised is None:
            return []
        if taught is None or len(taught.modes) < 2:
            known = 0 if taught is None else len(taught.modes)
            return [
                f"train.{self.name}.supervised teaches nothing: {known} failure modes stand in the log for failures "
                "that teach, and 2 are needed to tell apart."
            ]
        features_TF = self.relative(taught.spectra, taught.code)[:, :-1].clamp_(-INPUT_LIMIT, INPUT_LIMIT)
        refuse_non_finite(features_TF, "rows before failures that teach")
        self.modes = taught.modes
        self._lessons = Lessons.of(features_TF, taught.failure, taught.mode, taught.modes)
        return []

    def _taught(self, terms: dict[str, torch.Tensor], noise: torch.Generator | None) -> dict[str, torch.Tensor]:
        """Terms of a loss with the cross-entropy of rows that carry a mode; an evaluation has no such rows."""
        if self._lessons is None or self.params.supervised is None or noise is None:
            return terms
        features_BF, mode_B = self._lessons.draw(noise)
        modes = mode_loss(self.network.get_submodule("mode_head"), self.code(features_BF), mode_B)
        return terms | {"loss": terms["loss"] + self.params.supervised.alpha * modes, "modes": modes}

    def _what_was_taught(self) -> dict[str, Any]:
        """For the history: modes, failures, rows, and how many of these rows the head tells; no row here is unseen."""
        lessons = self._lessons
        if lessons is None:
            return {}
        logits = [self._mode_logits(part) for part in lessons.features_TF.split(PART_ROWS)]
        right = float((torch.cat(logits).argmax(1) == lessons.mode_T).double().mean())
        facts = {"modes": list(self.modes), "failures": len(lessons.rows), "rows": len(lessons)}
        return {"taught": facts | {"accuracy_on_them": round(right, 4)}}

    def _mode_logits(self, x_BF: torch.Tensor) -> torch.Tensor:
        with autocast(self.device, self.precision):
            logits: torch.Tensor = self.network.get_submodule("mode_head")(self.code(x_BF))
        return logits.float()

    def _findings(self, found: dict[str, Any]) -> list[str]:  # noqa: ARG002  (a network may have none)
        """Warnings about what has been learned, from the facts of the codes."""
        return []

    def _train(
        self,
        train: FeatureRows,
        validation_NF: torch.Tensor,
        probe_BF: torch.Tensor,
        fitting: Fitting,
        warnings: list[str],
    ) -> dict[str, Any]:
        """The history of the first training that ends alive, else of the last; what died is added to the warnings."""
        restarts, settings = self.params.restarts, self.params.optimiser
        history, tried = self._try(train, validation_NF, probe_BF, fitting, last=not restarts), 0
        while died := history.pop("died"):
            if tried == restarts:
                advice = f"lower train.{self.name}.optimiser.learning_rate ({settings.learning_rate})"
                end = f"and no seed is left; {advice} or change the activation ({self.params.activation})."
                warnings.append(f"Dead network: {died}, {end}")
                fitting.say(warnings[-1])
                break
            tried += 1
            warnings.append(f"Dead network: {died}; training started again from another seed ({tried} of {restarts}).")
            fitting.say(warnings[-1])
            again = replace(fitting, seed=fitting.seed + tried * SEED_STEP, base=None)
            history = self._try(train, validation_NF, probe_BF, again, last=tried == restarts)
        return history | {"restarts": tried, "fine_tuned": self.fine_tunes}

    def _try(
        self, train: FeatureRows, validation_NF: torch.Tensor, probe_BF: torch.Tensor, fitting: Fitting, *, last: bool
    ) -> dict[str, Any]:
        """One training from the first weights of a seed; `died` says what is dead. The last one is not cut short."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(fitting.seed)
            self.build()
        optimiser, self.fine_tunes = self.params.optimiser, fitting.base is not None
        if fitting.base is not None:
            self._take_weights(fitting.base)
            optimiser = optimiser.fine_tuning(fitting.fine_tune)
        loss = self.loss if last else _Watched(self, probe_BF)
        run = fitting.run(self.name, self.precision)
        if self._lessons is not None:
            run = replace(run, key=run.key + self._lessons.digest())
        run = replace(run, compile=run.compile and self.compiles)
        try:
            history = train_network(self.network, loss, train, validation_NF, optimiser, run)
        except DeadNetwork as death:
            return {"died": str(death)}
        return history | {"died": self.what_is_dead(probe_BF)}

    def _take_weights(self, base: Path) -> None:
        """Weights of the same network as another release has them; buffers stay as they were built.

        Raises:
            ReleaseError: it has another architecture, or sees other numbers.
        """
        manifest, arrays = load_arrays(base)
        theirs = self.layer_settings(type(self.params).model_validate(manifest["settings"]["params"]))
        kinds = {True: "spectrum", False: "features"}
        for what, expected, got in (
            ("bins of the data", manifest["bins"], self.baselines.bins),
            ("kind of the data", kinds[manifest["baselines"]["log"]], kinds[self.baselines.log]),
            *(
                (f"train.{self.name}.{name}", theirs[name], own)
                for name, own in self.layer_settings(self.params).items()
            ),
        ):
            if expected != got:
                raise ReleaseError(
                    f"{what}: got {got}, expected {expected} as the weights of base_release have it "
                    f"(or base_release: null, in params.yaml), in {base}."
                )
        weights = {
            f"network.{name}": value
            for name, value in self.network.named_parameters()
            if not name.startswith("mode_head.")  # the modes of other failures
        }
        missing = [name for name, value in weights.items() if arrays.get(name, np.empty(0)).shape != tuple(value.shape)]
        if missing:
            raise ReleaseError(f"base_release: got no fitting {', '.join(missing)}, expected all layers, in {base}.")
        with torch.no_grad():
            for name, value in weights.items():
                value.copy_(torch.from_numpy(np.array(arrays[name])))

    def layer_settings(self, params: NetworkParams) -> dict[str, Any]:
        """The parameters that decide which weights there are and what they mean, as JSON."""
        values = params.model_dump(mode="json")
        shape = {"convolutional": ("channels", "kernel"), "dense": ("layers",)}[self.params.architecture]
        learned = {"loss": values["loss"]} if self.params.loss == "gaussian" else {}
        # a failure that has taught the first weights must not choose a policy for what becomes of them
        taught = {"supervised.failures": params.supervised.failures if params.supervised else None}
        return {name: values[name] for name in ("architecture", "latent", *shape, "activation")} | learned | taught

    @torch.inference_mode()
    def what_is_dead(self, probe_BF: torch.Tensor) -> str:
        """What is the same for all rows, the code or the output; empty where neither is, or the rows are the same.

        In float32, whatever the precision: rounding to bfloat16 makes alike what is not.
        """
        if not _varies(probe_BF):
            return ""
        with torch.autocast(self.device.type, enabled=False):
            code_BL = self.activate(self.network.encoder(probe_BF))
            output_BF = self.network.decoder(code_BL)
        if not _varies(code_BL):
            return "all rows have the same code"
        return "" if _varies(output_BF) else "all rows have the same reconstruction"

    def _fit_statistics(self, train: FeatureRows, healthy_NF: torch.Tensor) -> dict[str, Any]:
        """What is usual: codes of training rows, residuals and distances of later healthy ones; for the history."""
        step = max(1, len(train) // CODE_ROWS)
        codes_NL = torch.cat([self.code(part[::step]) for part in train.parts()])
        mean_L, root_LL = code_statistics(codes_NL)
        self._statistics = {"latent_mean": mean_L, "latent_root": root_LL}
        if self._by_neighbours:
            spread = torch.linspace(0, len(codes_NL) - 1, min(NEAR_CODES, len(codes_NL)), dtype=torch.float64)
            self._statistics["neighbours"] = codes_NL[spread.long().to(codes_NL.device)].float()
        if self.params.residual == "weighted":
            residuals = (part - self.decode(self.code(part)) for part in healthy_NF.split(PART_ROWS))
            self._statistics["residual_variance"] = residual_variance(residuals, self.width, INPUT_LIMIT)
        evidence = [self.evidence(part) for part in healthy_NF.split(PART_ROWS)]
        values = {
            "residual": [each.residual_BF.sum(1) for each in evidence],
            "latent": [each.latent_B for each in evidence],
        }
        self._tails = {name: Tail.of(torch.cat(of).double().cpu().numpy()) for name, of in values.items()}
        return self._code_facts(codes_NL)

    @property
    def _by_neighbours(self) -> bool:
        """Spectra are described relative to their machine and condition, and have one cloud of codes; features many."""
        asked = self.params.code_distance
        return asked == "neighbours" or (asked == "auto" and not self.baselines.log)

    def _code_facts(self, codes_NL: torch.Tensor) -> dict[str, Any]:  # noqa: ARG002  (a network may have none)
        """What the history tells of the codes of training rows."""
        return {}

    def evidence(self, x_BF: torch.Tensor) -> Evidence:
        """Residuals and latent distance of rows in robust deviations."""
        code_BL = self.code(x_BF)
        output_BF = self.decode(code_BL)
        residual_BF = self._residual(x_BF, output_BF).div_(self.width)
        away_BL = self._whitened(code_BL)
        if "neighbours" not in self._statistics:
            return Evidence(residual_BF, away_BL.square().sum(1), output_BF)
        with torch.autocast(self.device.type, enabled=False) if self.precision != "float32" else nullcontext():
            distance_B, _ = nearest_codes(away_BL.float(), self._whitened(self._statistics["neighbours"]).float())
        return Evidence(residual_BF, distance_B, output_BF)

    def _whitened(self, code_BL: torch.Tensor) -> torch.Tensor:
        """Codes in the metric in which those of healthy rows have variance 1 in all directions, float64."""
        away_BL: torch.Tensor = (code_BL.double() - self._statistics["latent_mean"]) @ self._statistics["latent_root"]
        return away_BL

    def _usual(self, x_BF: torch.Tensor) -> torch.Tensor:
        """What the output would be of a usual code: the mean one (1, F), or the nearest of healthy rows (B, F)."""
        if "neighbours" not in self._statistics:
            return self.decode(self._statistics["latent_mean"][None].float())
        near_KL = self._statistics["neighbours"]
        with torch.autocast(self.device.type, enabled=False):
            _, place_B = nearest_codes(self._whitened(self.code(x_BF)).float(), self._whitened(near_KL).float())
        return self.decode(near_KL[place_B])

    def _residual(self, x_BF: torch.Tensor, output_BF: torch.Tensor) -> torch.Tensor:
        """Squared residuals (B, F) whose mean over the bins is the residual's score."""
        squared_BF = (x_BF - output_BF).clamp_(-SCORED_LIMIT, SCORED_LIMIT).square_()
        variance_F = self._statistics.get("residual_variance")
        return squared_BF if variance_F is None else squared_BF.div_(variance_F)

    def _parts_of_score(self, evidence: Evidence) -> tuple[torch.Tensor, torch.Tensor]:
        """What residual and code add to the score, each (B,) float64."""
        residual_B, latent_B = evidence.residual_BF.sum(1).double(), evidence.latent_B.double()
        if self.params.score == "combined":
            residual_B, latent_B = self._tails["residual"](residual_B), self._tails["latent"](latent_B)
            decides_B = residual_B >= latent_B
            return residual_B * decides_B, latent_B * ~decides_B
        only = {"residual": (1.0, 0.0), "latent": (0.0, 1.0)}.get(self.params.score, (1.0, 1.0))
        return residual_B * only[0], latent_B * only[1]

    def score_batch(self, spectra_BF: torch.Tensor, relative_BG: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        """The score that the parameters name."""
        if self.params.score == "residual":  # the code's distance is not asked for
            x_BF = self.rows_of(relative_BG)
            return self._residual(x_BF, self.decode(self.code(x_BF))).mean(1).double()
        residual_B, latent_B = self._parts_of_score(self.evidence(self.rows_of(relative_BG)))
        return residual_B + latent_B

    def explain_batch(self, spectra_BF: torch.Tensor, relative_BG: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        """Shares per bin: the residual's by the bins' own; the code's by how far it moves the output from the usual."""
        x_BF = self.rows_of(relative_BG)
        evidence = self.evidence(x_BF)
        residual_B, latent_B = self._parts_of_score(evidence)
        moved_BF = (evidence.output_BF - self._usual(x_BF)).square()
        total: torch.Tensor = _shared(residual_B, evidence.residual_BF) + _shared(latent_B, moved_BF)
        return self.per_bin(total)

    @torch.inference_mode()
    def reconstruct(self, spectra_NF: FloatNF, code_N: np.ndarray) -> tuple[FloatN, FloatN]:
        """Original and reconstruction (N, F), in robust deviations from the row's baseline; for reports."""
        x = self.relative(spectra_NF, code_N)[:, :-1]
        return x.cpu().numpy(), self.decode(self.code(x)).cpu().numpy()

    def encode(self, spectra_NF: FloatNF, code_N: npt.NDArray[np.int32]) -> FloatNF:
        """Codes (N, L) of rows, float32, each the same wherever its row stands; of a VAE the means.

        Args:
            spectra_NF: magnitudes (N, F) in the sensor's unit, finite.
            code_N: rows of the baseline table, from `baselines.codes`.

        Raises:
            ContractError: another number of bins than the detector was fitted on.
        """
        codes_NL = self._in_batches(
            lambda _, relative_BG: self.code(relative_BG[:, :-1]), spectra_NF, code_N, (self.params.latent,), None
        )
        return codes_NL.astype(np.float32)

    @torch.inference_mode()
    def decode_to_spectra(self, codes_NL: FloatNF, code_N: npt.NDArray[np.int32]) -> FloatNF:
        """Spectra (N, F) in the sensor's unit that codes stand for: the inverse of `encode`, as far as it has one.

        Args:
            codes_NL: codes of rows.
            code_N: rows of the baseline table that described them.
        """
        out_NF = np.empty((len(codes_NL), self.baselines.bins), np.float32)
        batch, rows = torch.zeros((self.batch_rows, self.params.latent)), torch.zeros(self.batch_rows, dtype=torch.long)
        for begin in range(0, len(codes_NL), self.batch_rows):
            size = len(codes_NL[begin : begin + self.batch_rows])
            batch.zero_()  # padded, as where rows are scored: a row's bits depend on no neighbour
            rows.zero_()
            batch.numpy()[:size] = codes_NL[begin : begin + size]
            rows.numpy()[:size] = code_N[begin : begin + size]
            relative_BF = self.decode(batch.to(self.device))
            made_BF = self.baselines.magnitudes(relative_BF, rows.to(self.device), self._tables)
            out_NF[begin : begin + size] = made_BF[:size].cpu().numpy()
        return out_NF

    def arrays(self) -> Arrays:
        """Layers and statistics."""
        layers = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        statistics = {f"statistics.{name}": value for name, value in self._statistics.items()}
        tails = {f"tail.{name}": np.array(tail.knots) for name, tail in self._tails.items()}
        return {name: value.cpu().numpy() for name, value in (layers | statistics).items()} | tails

    def restore(self, arrays: Arrays, settings: dict[str, Any]) -> None:
        """Load layers and statistics; a RuntimeError or KeyError where they do not fit."""
        self.params = type(self.params).model_validate(settings["params"])
        self.modes = tuple(settings.get("modes", ()))
        self.build()
        tensors = {name: torch.from_numpy(np.array(value)).to(self.device) for name, value in arrays.items()}
        self.network.load_state_dict(tensors_below(tensors, "network."))
        self._statistics = tensors_below(tensors, "statistics.")
        self._tails = {name: Tail(tuple(knots.tolist())) for name, knots in tensors_below(tensors, "tail.").items()}

    def settings(self) -> dict[str, Any]:
        """Parameters."""
        modes = {"modes": list(self.modes)} if self.modes else {}
        return {"params": self.params.model_dump(mode="json")} | modes


class _Watched:
    """A detector's loss that raises DeadNetwork where the network is dead after FIRST_EPOCHS."""

    def __init__(self, detector: NeuralDetector, probe_BF: torch.Tensor) -> None:
        self.detector, self.probe_BF, self.epoch = detector, probe_BF, 0

    def __call__(self, x_BF: torch.Tensor, epoch: int, noise: torch.Generator | None) -> dict[str, torch.Tensor]:
        if noise is not None:
            self.epoch = epoch
        elif self.epoch == FIRST_EPOCHS and (died := self.detector.what_is_dead(self.probe_BF)):
            raise DeadNetwork(f"{died} after epoch {self.epoch}")
        return self.detector.loss(x_BF, epoch, noise)


def _varies(values: torch.Tensor) -> bool:
    """Does any column differ between rows, by more than rounding of the numbers in it?"""
    spread, size = values.amax(0) - values.amin(0), values.abs().amax(0)
    return bool((spread > ROUNDING * size).any())


def _shared(value_B: torch.Tensor, weight_BF: torch.Tensor) -> torch.Tensor:
    """Values (B,) divided among bins (B, F) by their weights; evenly where all are zero."""
    weight_BF = weight_BF.double() + TINY
    return value_B[:, None] * weight_BF / weight_BF.sum(1, keepdim=True)

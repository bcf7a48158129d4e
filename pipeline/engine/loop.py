"""The training loop: no Python per row, no synchronisation per step, and nothing lost when it is killed.

Shape legend: B rows of a batch, F features.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from pipeline.engine import checkpoint
from pipeline.engine.checkpoint import State, Tensors
from pipeline.engine.optimisers import Schedule, make_optimiser
from pipeline.engine.precision import autocast
from pipeline.engine.processes import Processes, shared_loss
from pipeline.engine.progress import LiveFigures, TrainingProgress
from pipeline.engine.rows import PART_ROWS, FeatureRows, refuse_non_finite
from pipeline.engine.run import Loss, Run, silent
from pipeline.errors import HearkenError
from pipeline.params import OptimiserParams

MIN_STEPS = 32  # per epoch: a few hundred rows in one batch of 1,024 would hardly move the weights
MIN_BATCH = 32
SMALLEST_BATCH = 8  # that halving after a lack of memory goes down to
ORDER, NOISE, LAYERS = range(3)  # streams of random numbers


def train_network(
    network: nn.Module,
    loss: Loss,
    rows: FeatureRows,
    validation: torch.Tensor,
    settings: OptimiserParams,
    run: Run,
) -> dict[str, Any]:
    """Train, and leave the weights with the lowest validation loss in `network`.

    Training ends after `settings.max_epochs`, after `settings.patience` epochs without an improvement, or where the
    loss is no longer a finite number. On a GPU that runs out of memory the batch is halved.

    Args:
        network: with its first weights; everything that trains is a parameter of it.
        loss: terms of the loss of a batch; it calls `network`.
        rows: that train.
        validation: (n, F) rows that say when to stop; none: the training loss does.
        settings: optimiser, schedule, epochs and batch.
        run: seed, device, precision, and where progress and checkpoints go.

    Returns:
        `epochs` (a dict of figures each), `best_epoch`, `stopped` (why), `cap_hit` (the validation loss still fell),
        `warnings`, and `rows_per_s` of training alone (0 where a checkpoint had brought all epochs).

    Raises:
        ContractError: validation rows with NaN or infinity.
        HearkenError: no epoch ended with a finite loss; no memory for the smallest batch.
    """
    validation = validation.detach().to(run.device).float()
    refuse_non_finite(validation, "validation rows")
    network.to(run.device)
    return _Training(network, loss, rows, validation, settings, run).to_the_end()


class _Training:
    """One training and its state."""

    def __init__(
        self,
        network: nn.Module,
        loss: Loss,
        rows: FeatureRows,
        validation: torch.Tensor,
        settings: OptimiserParams,
        run: Run,
    ) -> None:
        self.processes = Processes.here()
        if not self.processes.leads:
            run = replace(run, live=None, say=silent)
        self.network, self.loss, self.rows, self.validation = network, loss, rows, validation
        self.settings, self.run = settings, run
        self.shared_loss = shared_loss(network, loss, self.processes)
        self.optimiser = make_optimiser(network.parameters(), settings)
        self.schedule = Schedule(self.optimiser, settings)
        self.batch_rows = min(settings.batch_rows, max(MIN_BATCH, len(rows) // MIN_STEPS))  # that the order is dealt in
        self.state = State(batch_rows=self.batch_rows, part_rows=max(1, min(PART_ROWS, len(validation))))
        self.best: Tensors = {}
        self.folder = run.checkpoint / str(run.seed) if run.checkpoint is not None else None
        self.mark = ""

    def to_the_end(self) -> dict[str, Any]:
        """All epochs; see train_network."""
        run, settings = self.run, self.settings
        self._resume()
        live = LiveFigures(run)
        for earlier in self.state.epochs:
            live.log(earlier)
        devices = [run.device] if run.device.type == "cuda" else []
        progress = TrainingProgress(run, len(self.rows), settings.max_epochs, self.state.epoch)
        with torch.random.fork_rng(devices=devices), compiled(self.network, run), progress:
            while not self.state.stopped:
                entry = self._epoch(self.state.epoch + 1, progress)
                if entry is not None:
                    live.log(entry)
                    progress.validated(entry, last=bool(self.state.stopped))
                if self.folder is not None and self.best and self.processes.leads:
                    checkpoint.save(self.folder, self.mark, self.state, self.network, self.best, self.optimiser)
        live.close()
        if not self.best:
            raise HearkenError(f"{run.name}: {self.state.warnings[-1]}")
        self.network.load_state_dict(self.best)
        self.network.eval()
        return self._history(progress.rows_per_s)

    def _resume(self) -> None:
        if self.folder is None:
            return
        self.mark = checkpoint.fingerprint(self.network, self.rows, self.validation, self.settings, self.run)
        found = checkpoint.resume(self.folder, self.mark, self.network, self.optimiser, self.run)
        if found is not None:
            self.state, self.best = found
            self.run.say(f"goes on after epoch {self.state.epoch}, from its checkpoint")

    def _epoch(self, epoch: int, progress: TrainingProgress) -> dict[str, Any] | None:
        """One epoch with its validation; None where it ended without a finite loss."""
        progress.start()
        means = self._train(epoch, progress)
        progress.trained()
        watched = self._validate() if len(self.validation) else means
        watched["loss"] = self.processes.of_the_first(watched["loss"], self.run.device)
        if not (math.isfinite(means["loss"]) and math.isfinite(watched["loss"])):
            self._not_finite(epoch, means["loss"], watched["loss"])
            return None
        figures = {"train_loss": means["loss"], "validation_loss": watched["loss"]}
        figures |= {name: value for name, value in means.items() if name != "loss"}
        entry = {"epoch": epoch, **{name: float(f"{value:.6g}") for name, value in figures.items()}}
        state = self.state
        state.epoch = epoch
        state.epochs.append(entry)
        if watched["loss"] < state.best - self.settings.min_improvement * abs(state.best) or not self.best:
            state.best, state.best_epoch, self.best = watched["loss"], epoch, self._weights()
        if epoch - state.best_epoch >= self.settings.patience:
            state.stopped = "no improvement"
        elif epoch == self.settings.max_epochs:
            state.stopped = "all epochs"
        return entry

    def _train(self, epoch: int, progress: TrainingProgress) -> dict[str, float]:
        """Mean of each term over the rows of an epoch; NaN as soon as the loss is not finite."""
        run, rows, state, processes = self.run, len(self.rows), self.state, self.processes
        noise = torch.Generator(run.device).manual_seed(_seed(run.seed, NOISE, epoch) + processes.rank)
        torch.manual_seed(_seed(run.seed, LAYERS, epoch))  # for layers that draw by themselves
        self.network.train()
        names: tuple[str, ...] = ()
        sums = torch.zeros(0)
        seen = 0
        for chunk in self.rows.epoch(_seed(run.seed, ORDER, epoch), self.batch_rows):
            begin = 0
            while begin < len(chunk.order):
                picked = chunk.order[begin : begin + state.batch_rows]
                self.schedule.set(epoch - 1 + seen / rows)
                mine = processes.part(picked)
                weight = len(mine) * processes.count / len(picked) if len(picked) >= processes.count else 1.0
                try:
                    terms = self._step(chunk.take(mine), epoch, noise, weight)
                except torch.OutOfMemoryError:
                    if processes.count > 1:  # the others are in the middle of the same step
                        raise
                    terms = None
                if terms is None:  # outside of the handler, which holds on to the memory of the step
                    state.batch_rows = self._halved(state.batch_rows)
                    continue
                if not names:
                    names, sums = tuple(terms), torch.zeros(len(terms), dtype=torch.float64, device=run.device)
                counted = len(picked) * weight / processes.count
                values = list(terms.values())  # summed on the device: no synchronisation per step
                sums.add_(
                    torch.stack(values).detach() if len(values) > 1 else values[0].detach(),
                    alpha=counted,
                )
                begin, seen = begin + len(picked), seen + len(picked)
                progress.batch(len(picked))
            if not torch.isfinite(processes.summed(sums.clone())).all():
                break
        return dict(zip(names, (processes.summed(sums) / max(1, seen)).tolist(), strict=True))

    def _step(
        self, batch_BF: torch.Tensor, epoch: int, noise: torch.Generator, weight: float
    ) -> dict[str, torch.Tensor]:
        """One step; `weight` makes the mean over processes the mean over the rows of all of them."""
        self.optimiser.zero_grad(set_to_none=True)
        with autocast(self.run.device, self.run.precision):
            terms = self.shared_loss(batch_BF, epoch, noise)
        (terms["loss"] if weight == 1.0 else weight * terms["loss"]).backward()
        self.optimiser.step()
        return terms

    def _validate(self) -> dict[str, float]:
        """Mean of each term over the validation rows, in parts as large as memory allows."""
        self.network.eval()
        eager = torch.compiler.set_stance("force_eager") if _compiles(self.run) else contextlib.nullcontext()
        while True:
            try:
                with eager:  # compiled for steps, not for other sizes and without gradients
                    return self._validate_in_parts(self.state.part_rows)
            except torch.OutOfMemoryError:
                pass
            self.state.part_rows = self._halved(self.state.part_rows)

    @torch.inference_mode()
    def _validate_in_parts(self, part_rows: int) -> dict[str, float]:
        means: dict[str, torch.Tensor] = {}
        for part in self.validation.split(part_rows):
            with autocast(self.run.device, self.run.precision):
                terms = self.loss(part, self.settings.max_epochs, None)
            for name, value in terms.items():
                share = value.double() * (len(part) / len(self.validation))
                means[name] = means[name] + share if name in means else share
        return {name: float(value) for name, value in means.items()}

    def _halved(self, rows: int) -> int:
        """Half as many rows, said and written down."""
        if rows // 2 < SMALLEST_BATCH:
            raise HearkenError(f"{self.run.name}: no memory on {self.run.device} for {rows} rows.")
        self.optimiser.zero_grad(set_to_none=True)
        if self.run.device.type == "cuda":
            torch.cuda.empty_cache()
        line = f"{self.run.device} ran out of memory: the batch is halved to {rows // 2:,} rows"
        self.state.warnings.append(line[0].upper() + line[1:] + ".")
        self.run.say(line)
        return rows // 2

    def _not_finite(self, epoch: int, train_loss: float, validation_loss: float) -> None:
        """Stop; weights and history stay those of the last good epoch."""
        state, rate = self.state, self.settings.learning_rate
        which = "training" if not math.isfinite(train_loss) else "validation"
        value = train_loss if which == "training" else validation_loss
        kept = f"the weights of epoch {state.best_epoch} are kept" if self.best else "there are no good weights"
        advice = f"lower train.{self.run.name}.optimiser.learning_rate ({rate})"
        line = f"The {which} loss was no longer a finite number ({value}) in epoch {epoch}; {kept}; {advice}."
        state.stopped = "non-finite loss"
        state.warnings.append(line)
        self.run.say(line)

    def _weights(self) -> Tensors:
        return {name: value.detach().clone() for name, value in self.network.state_dict().items()}

    def _history(self, rows_per_s: float) -> dict[str, Any]:
        state, settings = self.state, self.settings
        cap_hit = state.stopped == "all epochs" and state.best_epoch > settings.max_epochs - settings.patience
        warnings = list(state.warnings)
        if cap_hit:
            stopped_at = f"{self.run.epochs_setting} ({settings.max_epochs})"
            warnings.append(f"The validation loss still fell when training stopped at {stopped_at}.")
        return {
            "epochs": state.epochs,
            "best_epoch": state.best_epoch,
            "stopped": state.stopped,
            "cap_hit": cap_hit,
            "warnings": warnings,
            "rows_per_s": rows_per_s,
        }


def _seed(seed: int, stream: int, epoch: int) -> int:
    """The seed of one stream of random numbers in one epoch: nothing has to be remembered between epochs."""
    return int(np.random.SeedSequence([seed % 2**64, stream, epoch]).generate_state(1, np.uint64)[0] >> np.uint64(2))


def _compiles(run: Run) -> bool:
    return run.compile and run.device.type == "cuda"


@contextlib.contextmanager
def compiled(network: nn.Module, run: Run) -> Iterator[None]:
    """On CUDA, the network and its direct parts, whichever the loss calls; on CPUs it costs more than it gains.

    Afterwards they are as before: what is fitted on the trained network has to see it as service will.
    """
    parts = [network, *network.children()] if _compiles(run) else []
    for part in parts:
        part.compile()
    try:
        yield
    finally:
        for part in parts:
            part._compiled_call_impl = None

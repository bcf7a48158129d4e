"""The engine on toy networks: what it learns, what it keeps, and that nothing that happens on the way changes it."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

from pipeline.engine import FeatureRows, Run, choose_precision, loop, precision, rows, train_network
from pipeline.engine.checkpoint import checkpoint_file
from pipeline.engine.progress import TrainingProgress
from pipeline.errors import ContractError, HearkenError, ParamsError
from pipeline.params import OptimiserParams, parse_params

BINS = 8
CPU = torch.device("cpu")
SETTINGS = OptimiserParams(max_epochs=6, batch_rows=64, learning_rate=0.01, patience=6)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """So small networks gain nothing from two."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def features(count: int = 4000, seed: int = 0) -> torch.Tensor:
    """Rows on a plane of three dimensions, with a little noise."""
    draw = torch.Generator().manual_seed(seed)
    mixing = torch.randn(3, BINS, generator=torch.Generator().manual_seed(99))
    return torch.randn(count, 3, generator=draw) @ mixing + 0.1 * torch.randn(count, BINS, generator=draw)


def network(seed: int = 1) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(BINS, 3), nn.Tanh(), nn.Linear(3, BINS))


def noisy_loss(net: nn.Module) -> Any:
    def loss(x_BF: torch.Tensor, epoch: int, noise: torch.Generator | None) -> dict[str, torch.Tensor]:
        seen = x_BF if noise is None else x_BF + 0.1 * torch.randn(x_BF.shape, generator=noise)
        error = functional.mse_loss(net(seen), x_BF)
        return {"loss": error, "reconstruction": error}

    return loss


def trained(
    net: nn.Module | None = None,
    data: FeatureRows | None = None,
    settings: OptimiserParams = SETTINGS,
    wrap: Callable[[Any], Any] = lambda loss: loss,
    **run: Any,
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    net = net or network()
    data = data or FeatureRows.resident(features())
    told = Run(name="toy", seed=run.pop("seed", 3), device=CPU, **run)
    history = train_network(net, wrap(noisy_loss(net)), data, features(500, seed=7), settings, told)
    return history, {name: value.clone() for name, value in net.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def without_speed(history: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in history.items() if name != "rows_per_s"}


class TestRows:
    def test_an_epoch_holds_every_row_once_in_another_order_each_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(rows, "CHUNK_BYTES", 4 * BINS * 1000)
        data = FeatureRows.resident(features(3210))
        orders = [torch.cat([chunk.order for chunk in data.epoch(seed, 64)]) for seed in (1, 2)]
        assert all(torch.equal(order.sort().values, torch.arange(3210)) for order in orders)
        assert not torch.equal(*orders)

    def test_chunks_hold_whole_batches_and_whole_hours(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(rows, "CHUNK_BYTES", 4 * BINS * 1300)
        hour_N = np.arange(6000) // 300  # an hour has more rows than a block
        chunks = list(FeatureRows.resident(features(6000), hour_N).epoch(1, 100))
        assert [len(chunk.order) for chunk in chunks] == [1300] * 4 + [800]
        of_chunk = [np.unique(hour_N[chunk.order.numpy()], return_counts=True) for chunk in chunks]
        cut = [int((counts < 300).sum()) for _, counts in of_chunk]
        assert max(cut) <= 2  # one at either end
        assert len(of_chunk[0][0]) > 1
        assert not np.all(np.diff(chunks[0].order.numpy()) == 1)  # shuffled within

    def test_streamed_rows_train_to_the_bits_of_resident_ones(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(rows, "CHUNK_BYTES", 4 * BINS * 900)
        parts = features().split(700)
        made = [
            FeatureRows.gather(parts, 4000, BINS, CPU, scratch=tmp_path / "scratch", resident=resident)
            for resident in (True, False)
        ]
        assert [data.streamed for data in made] == [False, True]
        assert torch.equal(torch.cat(list(made[0].parts(300))), torch.cat(list(made[1].parts(300))))
        results = [trained(data=data) for data in made]
        assert without_speed(results[0][0]) == without_speed(results[1][0])
        assert same(results[0][1], results[1][1])
        assert list((tmp_path / "scratch").iterdir()) == []  # the file has no name

    def test_rows_that_are_no_numbers_are_refused_with_their_count(self) -> None:
        wrong = features()
        wrong[[3, 70, 70], [0, 1, 2]] = float("nan")
        wrong[71, 0] = float("inf")
        with pytest.raises(ContractError, match="3 of 4,000 rows with NaN or infinity"):
            FeatureRows.resident(wrong)
        with pytest.raises(ContractError, match="3 of 4,000 rows"):
            FeatureRows.gather(wrong.split(1000), 4000, BINS, CPU)
        net = network()
        with pytest.raises(ContractError, match="validation rows"):
            train_network(net, noisy_loss(net), FeatureRows.resident(features()), wrong, SETTINGS, Run("toy", 1, CPU))

    @pytest.mark.parametrize("rows_given", [3999, 4001])
    def test_another_number_of_rows_than_announced_is_refused(self, rows_given: int) -> None:
        with pytest.raises(ContractError, match="expected 4000"):
            FeatureRows.gather(features(rows_given).split(1000), 4000, BINS, CPU)

    def test_memory_decides_where_rows_lie(self, tmp_path: Path) -> None:
        assert rows.fits_in_memory(1000, CPU)
        assert not rows.fits_in_memory(2**60, CPU)

    def test_the_limit_of_a_container_counts(self, tmp_path: Path) -> None:
        (tmp_path / "memory.max").write_text("1000\n")
        (tmp_path / "memory.current").write_text("700\n")
        (tmp_path / "memory.stat").write_text("anon 600\nfile 100\n")
        assert rows.container_free(tmp_path) == 400
        (tmp_path / "memory.max").write_text("max\n")
        assert rows.container_free(tmp_path) == math.inf


class TestLearning:
    @pytest.mark.parametrize("name", ["adamw", "rmsprop", "sgd", "adagrad"])
    @pytest.mark.parametrize("schedule", ["one_cycle", "cosine", "constant", "step"])
    def test_every_optimiser_learns_with_every_schedule(self, name: str, schedule: str) -> None:
        settings = SETTINGS.model_copy(
            update={"name": name, "schedule": schedule, "step_epochs": 3, "min_improvement": 0}
        )
        history, _ = trained(settings=settings)
        losses = [entry["validation_loss"] for entry in history["epochs"]]
        assert losses[-1] < 0.9 * losses[0]
        assert history["best_epoch"] == 1 + int(np.argmin(losses))

    def test_settings_that_mean_nothing_are_refused(self) -> None:
        with pytest.raises(ParamsError, match=r"train\.autoencoder\.optimiser.*momentum=0\.5 with adamw"):
            parse_params("train: {autoencoder: {optimiser: {momentum: 0.5}}}")
        with pytest.raises(ParamsError, match=r"optimiser\.name"):
            parse_params("train: {autoencoder: {optimiser: {name: lion}}}")

    def test_stops_early_and_keeps_the_best_weights(self) -> None:
        """One number moves from 0 to 1, the mean of the training rows; the validation rows stand at 0.6."""
        net = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(net.weight)

        def loss(x_BF: torch.Tensor, epoch: int, noise: torch.Generator | None) -> dict[str, torch.Tensor]:
            return {"loss": (net(torch.ones_like(x_BF)) - x_BF).square().mean()}

        settings = OptimiserParams(
            name="sgd", momentum=0.0, schedule="constant", learning_rate=0.003, max_epochs=50, patience=3, batch_rows=32
        )
        data = FeatureRows.resident(torch.ones(1024, 1))
        history = train_network(net, loss, data, torch.full((10, 1), 0.6), settings, Run("toy", 1, CPU))
        assert history["stopped"] == "no improvement"
        assert len(history["epochs"]) == history["best_epoch"] + 3 < 50
        assert abs(float(net.weight.detach()) - 0.6) < 0.1
        assert not history["cap_hit"]

    def test_a_loss_below_zero_improves_downwards(self) -> None:
        """As a Gaussian likelihood's does: the relative improvement counts from its size."""
        history, _ = trained(wrap=lambda loss: lambda *given: {"loss": loss(*given)["loss"] - 100})
        losses = [entry["validation_loss"] for entry in history["epochs"]]
        assert losses[-1] < losses[0] < -50
        assert history["best_epoch"] < 6  # the last is the lowest, yet not by 0.2 % of 100

    def test_the_cap_is_said(self) -> None:
        history, _ = trained()
        assert history["cap_hit"]
        assert any("train.toy.optimiser.max_epochs (6)" in warning for warning in history["warnings"])

    @pytest.mark.parametrize("count", [1, 5, 40])
    def test_fewer_rows_than_a_batch(self, count: int) -> None:
        history, weights = trained(data=FeatureRows.resident(features(count)))
        assert len(history["epochs"]) == 6
        assert not same(weights, dict(network().state_dict()))

    def test_small_sets_take_small_batches(self) -> None:
        sizes: list[int] = []

        def counting(loss: Any) -> Any:
            def counted(x_BF: torch.Tensor, epoch: int, noise: torch.Generator | None) -> dict[str, torch.Tensor]:
                if noise is not None and epoch == 1:
                    sizes.append(len(x_BF))
                return dict(loss(x_BF, epoch, noise))

            return counted

        trained(settings=SETTINGS.model_copy(update={"batch_rows": 1024}), wrap=counting)
        assert len(sizes) >= 32
        assert sum(sizes) == 4000

    def test_seeds_decide_and_nothing_else(self) -> None:
        torch.manual_seed(1)
        first = trained(seed=5)[1]
        torch.manual_seed(2)
        torch.rand(17)
        assert same(first, trained(seed=5)[1])
        assert not same(first, trained(seed=6)[1])

    def test_the_random_state_of_the_caller_stays(self) -> None:
        torch.manual_seed(4)
        expected = torch.rand(3)
        torch.manual_seed(4)
        trained()
        assert torch.equal(torch.rand(3), expected)

    def test_layers_that_draw_are_quiet_in_evaluation(self) -> None:
        net = nn.Sequential(nn.Dropout(0.5), network())
        history, _ = trained(net)
        again, _ = trained(nn.Sequential(nn.Dropout(0.5), network()))
        assert history["epochs"] == again["epochs"]
        assert not net.training


class TestPrecision:
    def test_auto_is_bfloat16_where_the_processor_multiplies_in_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for flags, expected in (("fpu amx_bf16 avx512f", "bfloat16"), ("fpu avx512f", "float32")):
            (tmp_path / "cpuinfo").write_text(f"flags\t\t: {flags}\n")
            monkeypatch.setattr(precision, "CPU_FLAGS", tmp_path / "cpuinfo")
            precision.has_matrix_units.cache_clear()
            assert choose_precision("auto", CPU) == expected
        precision.has_matrix_units.cache_clear()
        assert choose_precision("bfloat16", CPU) == "bfloat16"

    def test_products_are_bfloat16_and_weights_stay_float32(self) -> None:
        seen: set[torch.dtype] = set()
        net = network()
        net[0].register_forward_hook(lambda _layer, _given, out: seen.add(out.dtype))
        history, weights = trained(net, precision="bfloat16")
        assert seen == {torch.bfloat16}
        assert {value.dtype for value in weights.values()} == {torch.float32}
        exact = trained()[0]["epochs"][-1]["validation_loss"]
        assert history["epochs"][-1]["validation_loss"] == pytest.approx(exact, rel=0.1)


class TestCompiling:
    def test_only_cuda_compiles_and_afterwards_the_network_is_as_before(self, monkeypatch: pytest.MonkeyPatch) -> None:
        net, compiled = network(), []
        monkeypatch.setattr(nn.Module, "compile", lambda part: compiled.append(part))
        trained(net, compile=True)
        assert compiled == []
        with loop.compiled(net, Run("toy", 1, torch.device("cuda"), compile=True)):
            assert compiled == [net, *net.children()]
            net._compiled_call_impl = print
        assert net._compiled_call_impl is None


class TestTrouble:
    def test_a_loss_that_is_no_number_stops_with_the_last_good_weights(self, tmp_path: Path) -> None:
        def breaking(epoch_of_break: int) -> Callable[[Any], Any]:
            def wrap(loss: Any) -> Any:
                def broken(x_BF: torch.Tensor, epoch: int, noise: torch.Generator | None) -> dict[str, torch.Tensor]:
                    terms = loss(x_BF, epoch, noise)
                    bad = noise is not None and epoch >= epoch_of_break
                    return {**terms, "loss": terms["loss"] * (math.nan if bad else 1.0)}

                return broken

            return wrap

        said: list[str] = []
        history, weights = trained(wrap=breaking(3), say=said.append, checkpoint=tmp_path)
        assert history["stopped"] == "non-finite loss"
        assert [entry["epoch"] for entry in history["epochs"]] == [1, 2]
        assert all(torch.isfinite(value).all() for value in weights.values())
        assert any("in epoch 3; the weights of epoch 2 are kept" in warning for warning in history["warnings"])
        assert any("no longer a finite number (nan)" in line for line in said)
        with pytest.raises(HearkenError, match="there are no good weights"):
            trained(wrap=breaking(1))

    def test_a_gpu_without_memory_gets_half_the_batch_and_goes_on(self) -> None:
        sizes: list[int] = []

        def small_card(loss: Any) -> Any:
            def limited(x_BF: torch.Tensor, epoch: int, noise: torch.Generator | None) -> dict[str, torch.Tensor]:
                if len(x_BF) > (20 if noise is not None else 400):
                    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
                if noise is not None and epoch == 2:
                    sizes.append(len(x_BF))
                return dict(loss(x_BF, epoch, noise))

            return limited

        said: list[str] = []
        history, _ = trained(wrap=small_card, say=said.append)
        assert [warning for warning in history["warnings"] if "halved" in warning] == [
            "Cpu ran out of memory: the batch is halved to 32 rows.",
            "Cpu ran out of memory: the batch is halved to 16 rows.",
            "Cpu ran out of memory: the batch is halved to 250 rows.",  # of the 500 that validate
        ]
        assert sum("halved" in line for line in said) == 3
        assert set(sizes) == {16}
        assert sum(sizes) == 4000  # no row is passed over
        losses = [entry["validation_loss"] for entry in history["epochs"]]
        assert losses[-1] < 0.5 * losses[0]

    def test_a_card_too_small_for_any_batch_is_an_error(self) -> None:
        def nothing_fits(_loss: Any) -> Any:
            def full(*_given: Any) -> dict[str, torch.Tensor]:
                raise torch.OutOfMemoryError("CUDA out of memory.")

            return full

        with pytest.raises(HearkenError, match="no memory on cpu for 8 rows"):
            trained(wrap=nothing_fits)


class Interrupted(Exception):
    """Raised where a person would press Ctrl+C."""


def interrupting(at_epoch: int) -> Callable[[Any], Any]:
    def wrap(loss: Any) -> Any:
        def interrupted(x_BF: torch.Tensor, epoch: int, noise: torch.Generator | None) -> dict[str, torch.Tensor]:
            if noise is not None and epoch == at_epoch:
                raise Interrupted
            return dict(loss(x_BF, epoch, noise))

        return interrupted

    return wrap


class TestCheckpoints:
    @pytest.mark.parametrize("name", ["adamw", "rmsprop", "sgd", "adagrad"])
    def test_goes_on_to_the_same_bits(self, name: str, tmp_path: Path) -> None:
        settings = SETTINGS.model_copy(update={"name": name})
        whole = trained(settings=settings)
        with pytest.raises(Interrupted):
            trained(settings=settings, wrap=interrupting(4), checkpoint=tmp_path)
        said: list[str] = []
        resumed = trained(settings=settings, checkpoint=tmp_path, say=said.append)
        assert "goes on after epoch 3, from its checkpoint" in said
        assert without_speed(resumed[0]) == without_speed(whole[0])
        assert same(resumed[1], whole[1])

    def test_a_training_that_had_ended_is_only_read(self, tmp_path: Path) -> None:
        whole = trained(checkpoint=tmp_path)
        again = trained(checkpoint=tmp_path, wrap=interrupting(1))
        assert again[0]["rows_per_s"] == 0
        assert without_speed(again[0]) == without_speed(whole[0])
        assert same(again[1], whole[1])

    @pytest.mark.parametrize(
        "other",
        [
            {"settings": SETTINGS.model_copy(update={"learning_rate": 0.02})},
            {"data": FeatureRows.resident(features(seed=5))},
            {"key": "beta=2"},
            {"net": network(seed=8)},
        ],
        ids=["settings", "data", "key", "weights"],
    )
    def test_a_checkpoint_of_something_else_is_left_alone(self, other: dict[str, Any], tmp_path: Path) -> None:
        fresh = trained(**_copied(other))
        with pytest.raises(Interrupted):
            trained(wrap=interrupting(4), checkpoint=tmp_path)
        said: list[str] = []
        result = trained(**_copied(other), checkpoint=tmp_path, say=said.append)
        assert sum("of other parameters, data or code; training starts again" in line for line in said) == 1
        assert same(result[1], fresh[1])

    def test_a_damaged_checkpoint_is_said_and_not_used(self, tmp_path: Path) -> None:
        whole = trained()
        with pytest.raises(Interrupted):
            trained(wrap=interrupting(4), checkpoint=tmp_path)
        file = checkpoint_file(tmp_path / "3")
        file.write_bytes(file.read_bytes()[:-40])
        said: list[str] = []
        result = trained(checkpoint=tmp_path, say=said.append)
        assert sum("is damaged" in line for line in said) == 1
        assert same(result[1], whole[1])

    def test_a_killed_process_goes_on_to_the_same_bits(self, tmp_path: Path) -> None:
        program = tmp_path / "train.py"
        program.write_text(
            textwrap.dedent(
                """
                import sys, time
                from pathlib import Path
                from safetensors.torch import save_file
                sys.path.insert(0, sys.argv[1])
                import torch
                from test_engine import trained_with_traces
                torch.set_num_threads(1)
                def slow(loss):
                    def slowed(*given):
                        time.sleep(float(sys.argv[3]))
                        return loss(*given)
                    return slowed
                save_file(trained_with_traces(Path(sys.argv[2]), slow), sys.argv[2] + "/result.safetensors")
                """
            )
        )
        whole, killed = tmp_path / "whole", tmp_path / "killed"
        command = [sys.executable, str(program), str(Path(__file__).parent), str(killed)]
        process = subprocess.Popen([*command, "0.005"])
        file, deadline = checkpoint_file(killed / "3"), time.monotonic() + 120
        while not file.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert not (killed / "result.safetensors").exists()
        subprocess.run([*command, "0"], check=True)
        assert same(load_file(killed / "result.safetensors"), trained_with_traces(whole))
        figures = [path.relative_to(whole) for path in (whole / "live").rglob("*.*")]
        assert len(figures) == 4
        assert all((whole / path).read_bytes() == (killed / path).read_bytes() for path in figures)


def trained_with_traces(folder: Path, wrap: Callable[[Any], Any] = lambda loss: loss) -> dict[str, torch.Tensor]:
    """Weights of a training that keeps checkpoints and figures in a folder."""
    return trained(wrap=wrap, checkpoint=folder, live=folder / "live")[1]


def _copied(given: dict[str, Any]) -> dict[str, Any]:
    """A network is trained in place: each training gets its own."""
    return {**given, "net": network(seed=8)} if "net" in given else given


class TestFigures:
    def test_dvclive_leaves_the_figures_of_every_epoch_without_a_clock(self, tmp_path: Path) -> None:
        history, _ = trained(live=tmp_path / "one")
        trained(live=tmp_path / "two")
        table = (tmp_path / "one/plots/metrics/validation/loss.tsv").read_text().split()
        assert table[:2] == ["step", "loss"]
        assert [float(value) for value in table[3::2]] == [entry["validation_loss"] for entry in history["epochs"]]
        metrics = json.loads((tmp_path / "one/metrics.json").read_text())
        assert metrics["step"] == 6
        assert metrics["train"]["reconstruction"] == history["epochs"][-1]["reconstruction"]
        files = {path.relative_to(tmp_path / "one"): path.read_bytes() for path in (tmp_path / "one").rglob("*.*")}
        assert files
        assert all((tmp_path / "two" / name).read_bytes() == content for name, content in files.items())

    def test_a_git_repository_without_a_commit_stops_no_training(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
        monkeypatch.chdir(tmp_path)
        said: list[str] = []
        history, _ = trained(live=tmp_path / "live", say=said.append)
        assert len(history["epochs"]) == 6
        assert any("no figures per epoch" in line for line in said)

    def test_lines_tell_speed_and_the_time_left(self) -> None:
        said: list[str] = []
        trained(say=said.append)
        assert said[-1].startswith("epoch 6/6  train ")
        assert "rows/s  at most 0 s left" in said[-1]

    def test_a_long_epoch_tells_where_it_is(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("pipeline.engine.progress.SAY_EVERY_S", 0.0)
        monkeypatch.setattr("pipeline.engine.progress.REFRESH_S", 0.0)
        said: list[str] = []
        trained(say=said.append)
        assert any("% of epoch 2 " in line for line in said)

    def test_a_terminal_gets_a_bar(self, tmp_path: Path) -> None:
        with (tmp_path / "terminal").open("w") as file:
            console = Console(file=file, force_terminal=True, width=100)
            run = replace(Run("toy", 1, CPU), say=lambda _line: None)
            with TrainingProgress(run, rows=1000, max_epochs=2, done=0, console=console) as progress:
                progress.start()
                time.sleep(0.25)
                progress.batch(1000)
                progress.trained()
        drawn = (tmp_path / "terminal").read_text()
        assert "toy" in drawn
        assert "rows/s" in drawn

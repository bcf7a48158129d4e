"""`hearken tune`: settings tried as DVC experiments in a private clone, several at once, and the best one applied."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.checkout import checkout_above, installation
from flows.terminal import say, wide_console
from pipeline.errors import UserError

if TYPE_CHECKING:
    from flows.tune.experiments import Experiment
    from flows.workspace import Workspace

tune = typer.Typer(invoke_without_command=True)

MetricOption = Annotated[
    list[str] | None,
    typer.Option(
        "--metric",
        help="file:dotted.name of any metric file; repeated for more columns, the first sorts. "
        "Default: tuning:detectors.<of the release>.auroc.",
    ),
]
LowestOption = Annotated[
    bool | None, typer.Option("--lowest/--highest", help="What is best; default: as the metric's name says.")
]


@tune.callback()
def search(
    context: typer.Context,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="key=value,value or, with --random, key=low..high[:log]; repeated for more keys."),
    ] = None,
    draws: Annotated[int | None, typer.Option("--random", min=1, help="So many drawn, instead of a grid.")] = None,
    seed: Annotated[int, typer.Option(help="Of --random.")] = 0,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, help="Experiments at once.")] = 1,
    metric: MetricOption = None,
    lowest: LowestOption = None,
    apply_best: Annotated[bool, typer.Option("--apply", help="Write the best settings into params.yaml.")] = False,
) -> None:
    """Try settings of params.yaml, as DVC experiments in a private clone; this checkout stays as it is."""
    from flows.tune.experiments import build_present, check_settings, clear_queue, experiments, queue, run_queue
    from flows.tune.search import combinations, parse_axis

    if context.invoked_subcommand is not None:
        if set_ or draws or apply_best:
            raise UserError(f"--set, --random, --apply: got one before `{context.invoked_subcommand}`, expected none.")
        return
    tried = combinations([parse_axis(text) for text in set_ or []], draws, seed)
    with _clone(new=True) as workspace:
        texts = check_settings(workspace, tried)
        if left := clear_queue(workspace):
            say(f"{left} experiments of an earlier search were ended")
        say("the present settings first: what experiments share is made once")
        build_present(workspace, say)
        found = experiments(workspace)
        metrics, least = _metrics(workspace, metric, lowest, found)  # a wrong name before hours of work
        wanted = _untried(tried, texts, found)
        if skipped := len(texts) - len(wanted):
            say(f"{skipped} of {len(texts)} are the present settings or were tried before")
        for name, text in wanted.items():
            queue(workspace, name, text)
        if wanted:
            say(f"{len(wanted)} experiments, {jobs} at once")
            run_queue(workspace, list(wanted), jobs, say)
        found = experiments(workspace)
        _show(found, metrics, least)
        if apply_best:
            _apply_best(found, metrics[0], least)


def _untried(tried: Sequence[Mapping[str, Any]], texts: Sequence[str], found: Sequence[Experiment]) -> dict[str, str]:
    """The text of params.yaml by name, of combinations that no finished experiment had, nor the present settings.

    A name that an experiment with other settings bears already gets a digest behind it.
    """
    import yaml

    from flows.tune.search import longer_name, names_of

    done = [each.params for each in found if each.state == "success"]
    taken = {each.name for each in found if each.state == "success"}
    named = zip(names_of(tried), tried, texts, strict=True)
    new = [(name, one, text) for name, one, text in named if yaml.safe_load(text) not in done]
    return {longer_name(name, one) if name in taken else name: text for name, one, text in new}


@tune.command("list")
def list_(metric: MetricOption = None, lowest: LowestOption = None) -> None:
    """Show the experiments that started from the present commit, the best first."""
    from flows.tune.experiments import experiments

    with _clone(new=False) as workspace:
        found = experiments(workspace)
        _show(found, *_metrics(workspace, metric, lowest, found))


@tune.command()
def plot(
    x: Annotated[str, typer.Option("--x", help="The setting along the axis, by its dotted name.")],
    output: Annotated[Path, typer.Option(help="An HTML file to write; it opens offline.")],
    metric: MetricOption = None,
) -> None:
    """Plot figures of the experiments against one setting, a panel for each --metric."""
    from flows.tune.experiments import experiments
    from flows.tune.tables import plot_page
    from pipeline.store import write_text

    if output.is_dir():
        raise UserError(f"--output: got the folder {output}, expected a file.")
    with _clone(new=False) as workspace:
        found = experiments(workspace)
        metrics, _ = _metrics(workspace, metric, None, found)
        write_text(output, plot_page(found, x, metrics))
    say(str(output))


@tune.command("apply")
def apply_named(name: Annotated[str, typer.Argument(help="An experiment, as `hearken tune list` names it.")]) -> None:
    """Write an experiment's settings into params.yaml; its comments and everything else stay as they are."""
    from flows.tune.experiments import experiments

    with _clone(new=False) as workspace:
        found = experiments(workspace)
    chosen = next((each for each in found[1:] if each.name == name), None)
    if chosen is None:
        known = ", ".join(each.name for each in found[1:]) or "none"
        raise UserError(f"experiment: got {name}, expected one of: {known}.")
    _apply(chosen, found[0])


@tune.command()
def clear() -> None:
    """Forget all experiments; what they made stays in the DVC cache."""
    from flows.graph import run_dvc
    from flows.tune.experiments import clear_queue

    with _clone(new=False) as workspace:
        clear_queue(workspace)
        run_dvc(workspace.folder, ["exp", "remove", "--all-commits"], workspace.environment)
    say("all experiments are forgotten")


@contextmanager
def _clone(*, new: bool) -> Iterator[Workspace]:
    """The private clone of searches, held; `new`: brought to the files of the checkout.

    Raises:
        WorkspaceError: another search is at work; without `new`, there was none yet.
    """
    from flows.repository import run_git
    from flows.tune.experiments import CLONE, keep_objects, revision_of
    from flows.workspace import Workspace, held, open_workspace

    settings = installation()
    if new:
        here = replace(settings, repository=str(settings.checkout))  # its edits are what is tried
        with open_workspace(here, clone=True, name=CLONE, revision=revision_of(settings)) as workspace:
            keep_objects(workspace)
            for key, value in (("user.name", "Hearken"), ("user.email", "hearken@localhost")):
                run_git(workspace.folder, "config", key, value)  # DVC commits experiments, whoever runs it
            yield workspace
        return
    folder = settings.workspaces / CLONE
    if not (folder / ".git").is_dir():
        raise UserError("experiments: got none, expected a search: hearken tune --set key=value,value.")
    with held(settings, folder):
        head = run_git(folder, "rev-parse", "HEAD")
        yield Workspace(folder=folder, commit=head, origin=settings.repository, settings=settings)


def _metrics(
    workspace: Workspace, asked: list[str] | None, lowest: bool | None, found: list[Experiment]
) -> tuple[list[str], bool]:
    """The metrics to show, known to exist, and whether the lowest of the first is best."""
    from flows.tune.experiments import figure_of
    from flows.tune.tables import lower_is_better
    from pipeline.params import load_params

    metrics = asked or [f"tuning:detectors.{load_params(workspace.folder / 'params.yaml').release.detector}.auroc"]
    for metric in metrics:
        figure_of(found[0], metric)
    return metrics, lower_is_better(metrics[0]) if lowest is None else lowest


def _show(found: list[Experiment], metrics: list[str], lowest: bool) -> None:
    from flows.tune.experiments import TARGET, file_of
    from flows.tune.tables import results_table, tuned_on

    console = wide_console()
    console.print(results_table(found, metrics, lowest))
    by = file_of(found[0], metrics[0])
    if by in ("evaluation", "in_service"):
        say(
            f"note: chosen by figures of `{TARGET}`: on those rows the winner is flattered; tuning.json is for choosing"
        )
    if by == "tuning" and (counts := tuned_on(found)):
        told = " and ".join(str(count) for count in counts)
        say(f"note: not all were ranked by the same tune failures ({told} of them): like does not stand beside like")


def _apply_best(found: list[Experiment], metric: str, lowest: bool) -> None:
    from flows.tune.tables import ranked

    best = next(iter(ranked(found, metric, lowest)), None)
    if best is None or best.name == found[0].name:
        say("no experiment is better than the present settings: params.yaml stays as it is")
        return
    _apply(best, found[0])


def _apply(chosen: Experiment, now: Experiment) -> None:
    from flows.tune.tables import differences
    from flows.workspace import override_params

    changes = differences(chosen, now)
    path = checkout_above() / "params.yaml"
    override_params(path, {key: value for key, _, value in changes})
    for key, before, after in changes:
        say(f"{key}: {before} -> {after}")
    say(f"{path}: settings of {chosen.name}")

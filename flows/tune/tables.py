"""What came of a search: a table, the best first, and a page that plots figures against one of its settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from flows.terminal import DASH, shown, table
from flows.tune.experiments import NOW, Experiment, figure_or_none
from pipeline.errors import UserError

LOWER_IS_BETTER = ("loss", "false_episodes", "false_positive", "kl")
COLOURS = ("#0b6b7a", "#a8503f", "#6f5aa8", "#c08a2b", "#5d8a4c")


def lower_is_better(metric: str) -> bool:
    """Whether a figure's own name says that less is more.

    >>> lower_is_better("tuning:detectors.vae.validation_loss"), lower_is_better("detectors.vae.auroc")
    (True, False)
    >>> lower_is_better("evaluation:detectors.pca.median_lead_time_hours")
    False
    """
    last = metric.rsplit(".", 1)[-1]
    return any(word in last for word in LOWER_IS_BETTER)


def ranked(found: Sequence[Experiment], metric: str, lowest: bool) -> list[Experiment]:
    """The finished ones, the best first; those whose figure is null, or who have none, last."""
    done = [each for each in found if each.state == "success" and each.metrics]
    figures = {each.name: figure_or_none(each, metric) for each in done}
    sign = 1.0 if lowest else -1.0

    def key(each: Experiment) -> tuple[bool, float]:
        figure = figures[each.name]
        return (figure is None, 0.0 if figure is None else sign * figure)

    return sorted(done, key=key)


def changed_keys(found: Sequence[Experiment]) -> list[str]:
    """The settings in which experiments differ from the present ones."""
    now = next(each for each in found if each.name == NOW)
    return sorted({key for each in found for key in each.differs_from(now)})


def tuned_on(found: Sequence[Experiment]) -> list[int]:
    """How many tune failures the finished ones were ranked by, where they are not all the same; else none."""
    counts = {(each.metrics.get("tuning") or {}).get("tune_failures") for each in found if each.metrics}
    return sorted(count for count in counts if count is not None) if len(counts) > 1 else []


def results_table(found: Sequence[Experiment], metrics: Sequence[str], lowest: bool) -> Table:
    """A row per experiment, the best first, then those that failed or still wait; the present settings among them."""
    order = ranked(found, metrics[0], lowest)
    rest = [each for each in found if each not in order]
    keys, best = changed_keys(found), next((each.name for each in order), None)
    title = f"by {metrics[0]}, {'lowest' if lowest else 'highest'} first"
    made = table("experiment", title=shown(title))
    for key in keys:
        made.add_column(shown(key), justify="right", overflow="fold")
    for metric in metrics:
        made.add_column(shown(metric), justify="right", overflow="fold")
    made.add_column("state", overflow="fold")
    for each in (*order, *rest):
        values = [shown(each.setting(key, DASH)) for key in keys]
        figures = [_figure(figure_or_none(each, metric)) if each.metrics else DASH for metric in metrics]
        state = {"success": "done"}.get(each.state, each.state) if each.name != NOW else "present settings"
        state = f"[red]failed[/red]: {shown(each.why)}" if each.state == "failed" else state
        name = f"[green]{shown(each.name)}[/green]" if each.name == best else shown(each.name)
        made.add_row(name, *values, *figures, state)
    return made


def plot_page(found: Sequence[Experiment], key: str, metrics: Sequence[str]) -> str:
    """A page that opens offline: each figure against one setting, a panel for each, the present settings as a ring.

    Raises:
        UserError: no finished experiment has the setting as a number.
    """
    from plotly.subplots import make_subplots

    rows = [each for each in found if each.metrics and isinstance(each.setting(key), int | float)]
    rows.sort(key=lambda each: float(each.setting(key)))
    if not rows:
        keys = ", ".join(changed_keys(found)) or "none"
        raise UserError(f"--x: got {key}, expected a number that experiments differ in: {keys}.")
    figure = make_subplots(rows=len(metrics), cols=1, shared_xaxes=True, vertical_spacing=0.08)
    for place, metric in enumerate(metrics):
        points = [(each, figure_or_none(each, metric)) for each in rows]
        known = [(each, value) for each, value in points if value is not None]
        colour = COLOURS[place % len(COLOURS)]
        figure.add_scatter(
            x=[each.setting(key) for each, _ in known],
            y=[value for _, value in known],
            text=[each.name for each, _ in known],
            mode="lines+markers",
            line={"color": colour},
            marker={
                "size": [13 if each.name == NOW else 8 for each, _ in known],
                "symbol": ["circle-open" if each.name == NOW else "circle" for each, _ in known],
                "line": {"width": 2},
            },
            hovertemplate="%{text}: %{y:.4g}<extra></extra>",
            showlegend=False,
            row=place + 1,
            col=1,
        )
        figure.update_yaxes(title_text=_broken(metric), row=place + 1, col=1)
    figure.update_xaxes(title_text=key, row=len(metrics), col=1)
    title = f"{len(rows)} experiments over {key} (ring: present settings)"
    figure.update_layout(template="plotly_white", height=120 + 260 * len(metrics), title=title, margin={"l": 110})
    text: str = figure.to_html(include_plotlyjs=True)
    return text


def _broken(metric: str) -> str:
    """A long name on two lines."""
    head, dot, last = metric.rpartition(".")
    return f"{head}<br>{last}" if dot else metric


def differences(winner: Experiment, now: Experiment) -> list[tuple[str, Any, Any]]:
    """What a winner changes: key, present value, its value."""
    return [(key, now.setting(key), value) for key, value in winner.differs_from(now).items()]


def _figure(value: float | None) -> str:
    return DASH if value is None else f"{value:.4g}"

"""`hearken what-if`: other percentiles and policies, replayed on what was scored, beside the present setting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from flows.checkout import chosen_params, work_folder
from flows.terminal import DASH, JsonOption, print_json, say, shown, table, wide_console
from pipeline.errors import UserError

EVALUATION = Path("data/evaluation")
FEW_SETTINGS = 6  # of which a table of failures has a column each


def what_if(
    percentile: Annotated[list[float] | None, typer.Option(help="Of healthy scores; repeated for several.")] = None,
    k: Annotated[list[int] | None, typer.Option("--k", help="Rows that exceed; repeated for several.")] = None,
    n: Annotated[list[int] | None, typer.Option("--n", help="Of the last n rows; repeated for several.")] = None,
    budget: Annotated[
        float | None, typer.Option(help="False pages a day for the fleet; default: as params.yaml has it.")
    ] = None,
    detector: Annotated[str | None, typer.Option(help="Whose scores; default: the release's.")] = None,
    window: Annotated[float | None, typer.Option(help="Minutes; older rows do not count. Default: as now.")] = None,
    cool_down: Annotated[
        float | None, typer.Option("--cool-down", help="Hours after an alert in which its machine raises none.")
    ] = None,
    scores: Annotated[
        Path | None, typer.Option(help="data/evaluation of a build; default: that of the checkout.")
    ] = None,
    log: Annotated[Path | None, typer.Option(help="A score log instead.")] = None,
    release: Annotated[
        str | None, typer.Option(help="That wrote the log: a folder, an id, v3 or 3; default: the one in service.")
    ] = None,
    data_set: Annotated[
        Path | None, typer.Option("--data-set", help="Whose maintenance log tells the log's failures.")
    ] = None,
    params: Annotated[
        Path | None, typer.Option("--params", help="Settings to use; default: the checkout's, else the built-in ones.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Replay scores under other settings of the alerts: pages a day, failures caught and missed, lead times."""
    from pipeline.what_if import Wanted
    from pipeline.what_if_sources import replay_evaluation, replay_score_log

    if budget is not None and not 0 <= budget < float("inf"):
        raise UserError(f"--budget: got {budget:g}, expected false pages a day from 0 on.")
    wanted = Wanted(tuple(percentile or ()), tuple(k or ()), tuple(n or ()), window, cool_down)
    settings = chosen_params(params)
    if log is None:
        for option, given in (("--release", release), ("--data-set", data_set)):
            if given is not None:
                raise UserError(f"{option}: got {given} without --log, expected it with a score log only.")
        found = replay_evaluation(
            scores or work_folder() / EVALUATION, wanted, settings, detector=detector, budget=budget
        )
    else:
        from flows.chosen_release import chosen_release

        loaded = chosen_release(release, device="cpu")  # nothing is scored
        found = replay_score_log(log, loaded, wanted, settings, detector=detector, budget=budget, data_set=data_set)
    if as_json:
        print_json(found)
        return
    console = wide_console()
    console.print(settings_table(found))
    if found["failures"]:
        console.print(failures_table(found))
    for line in last_lines(found):
        say(line)


def settings_table(found: Mapping[str, Any]) -> Table:
    """A row per setting, the present one first."""
    rows, span = f"{found['rows']:,} rows of {found['machines']:,} machines", f"{found['machine_days']:,.4g}"
    title = f"{shown(found['detector'])}: {rows}, {span} machine-days; the first row is the present setting"
    made = table(title=title)
    for heading in ("", "percentile", "alert after", "window", "cool-down"):
        made.add_column(heading, justify="left" if heading == "alert after" else "right")
    for heading in ("pages a day", "false a day", "caught", "by chance", "median lead", "days with alert"):
        made.add_column(heading, justify="right")
    made.add_column(f"budget {found['budget_per_day']:.3g} a day")
    for number, row in enumerate(found["settings"]):
        made.add_row(*_cells(number, row))
    return made


def _cells(number: int, row: Mapping[str, Any]) -> list[str]:
    caught, events, interval = row["events_caught"], row["events"], row["false_episodes_per_day_ci"]
    around = f" ({_figure(interval[0])} to {_figure(interval[1])})" if interval else ""
    return [
        "now" if row["present"] else str(number),
        f"{row['percentile']:g}",
        f"{row['k']} of {row['n']}",
        f"{row['window_minutes']:g} min",
        f"{row['cool_down_hours']:g} h" if row["cool_down_hours"] else DASH,
        _figure(row["alerts_per_day"]),
        _figure(row["false_episodes_per_day"]) + around,
        DASH if caught is None else f"{caught} of {events}",
        _figure(row["events_by_chance"]),
        _hours(row["median_lead_time_hours"]),
        f"{row['machine_days_with_alert']:.2%}",
        {"yes": "[green]kept[/green]", "no": "[red]broken[/red]", "unsure": "not sure"}.get(row["budget_kept"], DASH),
    ]


def failures_table(found: Mapping[str, Any]) -> Table:
    """A row per failure: by which settings it is caught, and how early; few settings have a column each."""
    settings: Sequence[Mapping[str, Any]] = found["settings"]
    made = table("machine", "mode", title="Failures: lead time")
    made.add_column("failed (UTC)", no_wrap=True)
    few = len(settings) <= FEW_SETTINGS
    names = ["now", *(str(number) for number in range(1, len(settings)))]
    for heading in names if few else ("now", "earliest", "caught by"):
        made.add_column(heading, justify="left" if heading == "caught by" else "right")
    for failure in sorted(found["failures"], key=lambda failure: (failure["time"], failure["failure_id"])):
        leads = [row["lead_time_hours"].get(failure["failure_id"]) for row in settings]
        told = [shown(failure["machine_id"]), shown(failure["failure_mode"] or "not recorded"), failure["time"]]
        hours = ["[red]missed[/red]" if lead is None else _hours(lead) for lead in leads]
        if not few:
            known = [lead for lead in leads if lead is not None]
            by = [name for name, lead in zip(names, leads, strict=True) if lead is not None]
            hours = [hours[0], _hours(max(known)) if known else DASH, _ranges(by)]
        made.add_row(*told, *hours)
    return made


def _ranges(names: Sequence[str]) -> str:
    """Neighbouring numbers as one range.

    >>> _ranges(["now", "1", "2", "3", "7"])
    'now, 1-3, 7'
    """
    parts: list[list[str]] = []
    for name in names:
        if parts and name.isdigit() and parts[-1][-1].isdigit() and int(name) == int(parts[-1][-1]) + 1:
            parts[-1] = [parts[-1][0], name]
        else:
            parts.append([name])
    return ", ".join("-".join(part) for part in parts) or "none"


def last_lines(found: Mapping[str, Any]) -> list[str]:
    """Notes, and why figures are missing."""
    reasons: dict[str, list[str]] = {}
    for name, reason in found["null_reasons"].items():
        reasons.setdefault(reason, []).append(name)
    return [f"note: {note}" for note in found["notes"]] + [
        f"{DASH}: {reason} ({', '.join(sorted(names))})" for reason, names in reasons.items()
    ]


def _figure(value: float | None) -> str:
    """Three digits.

    >>> _figure(12.345), _figure(1234.5), _figure(None)
    ('12.3', '1,234', '—')
    """
    if value is None:
        return DASH
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _hours(value: float | None) -> str:
    return DASH if value is None else f"{_figure(value)} h"

"""What commands share of the terminal: times, lines, tables, JSON, and names that are shown and never obeyed."""

from __future__ import annotations

import datetime as dt
import json
import sys
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipeline.errors import printable
from pipeline.moments import typed_moment

DASH = "—"
WIDE = 160  # columns, where nobody's window limits the width: a row of a table stands on one line if it can
JsonOption = Annotated[bool, typer.Option("--json", help="Print as JSON.")]


def say(line: str) -> None:
    """Print a line as it is: taken neither for markup nor for a command of the terminal."""
    say_markup(escape(line))


def say_markup(line: str) -> None:
    """Print a line of Rich's markup; what comes from people or data stands in it as `shown` gives it."""
    Console(soft_wrap=True).print(printable(line), highlight=False)


def shown(value: object) -> str:
    r"""A name or text of people or data within markup: one line, taken neither for markup nor for a command.

    >>> print(shown("[red]pump\n\x1b[2J"), shown(None), shown(7))
    \[red]pump\n\x1b[2J  7
    """
    return escape(printable("" if value is None else str(value)).replace("\n", "\\n"))


def typed_time(text: str, option: str, *, tell: bool = False) -> dt.datetime:
    """A time that a person typed, in UTC; `tell`: where it has no zone, say that it is taken as UTC.

    Raises:
        UserError: it is no time.
    """
    moment, assumed = typed_moment(text, option)
    if assumed and tell:
        say_markup(f"[dim]{option}: {moment:%Y-%m-%d %H:%M} is taken as UTC[/dim]")
    return moment


def counted(count: int, name: str) -> str:
    """A number of things.

    >>> counted(1, "row"), counted(1200, "row")
    ('1 row', '1,200 rows')
    """
    return f"{count:,} {name}{'' if count == 1 else 's'}"


def print_json(value: Any) -> None:
    """Print plain values as JSON, its keys sorted."""
    typer.echo(json.dumps(value, indent=1, sort_keys=True, allow_nan=False))


def wide_console() -> Console:
    """For tables: as wide as the window, and 160 columns where there is none."""
    return Console(width=None if sys.stdout.isatty() else WIDE)


def table(*headings: str, title: str | None = None) -> Table:
    """A table of the project's form.

    Args:
        headings: of its first columns, whose texts are folded; markup.
        title: above it; markup.
    """
    made = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in headings:
        made.add_column(heading, overflow="fold")
    return made


def facts_table() -> Table:
    """Two columns without headings: names, and what is said of each."""
    made = Table(box=None, show_header=False, pad_edge=False)
    made.add_column(style="dim", no_wrap=True)
    made.add_column(overflow="fold")
    return made

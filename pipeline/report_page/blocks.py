"""What a page is made of: sections of text, tables, charts and key figures; and how numbers read.

Nothing here is HTML. Text is plain and is escaped by the template; charts are plotly's JSON with colours by name
("@accent"), which the page resolves to its light, dark or print palette.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

EM_DASH = "—"
NO_REASON = "no reason was recorded"


Tone = Literal["good", "bad", "plain"]


@dataclass(frozen=True)
class Chart:
    """A plotly figure with its place, its words, and a caption that says in text what it shows."""

    id: str
    title: str
    caption: str
    traces: Sequence[Mapping[str, Any]]
    layout: Mapping[str, Any]
    height: int = 300
    width: Literal["full", "half"] = "full"
    tag: str = ""  # a short remark beside the title, such as "caught"
    tone: Tone = "plain"


@dataclass(frozen=True)
class Cell:
    """One cell: text, a smaller line beneath, whether it is its column's best, footnote number, a bar for a share.

    With a `tone` the text stands as a tag.
    """

    text: str
    beneath: str = ""
    best: bool = False
    note: int | None = None
    share: float | None = None
    detector: str | None = None  # draws the detector's colour beside its name
    link: str | None = None  # a place of this page
    tone: Tone | None = None


@dataclass(frozen=True)
class Column:
    """A column head; `numeric` aligns to the right, `prose` is never clamped as a long name is."""

    label: str
    numeric: bool = True
    hint: str = ""
    prose: bool = False


@dataclass(frozen=True)
class Table:
    """A table with a caption; the first cell of each row is its head."""

    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    footnotes: Sequence[str] = ()
    kind: Literal["table"] = "table"


@dataclass(frozen=True)
class Text:
    """A paragraph; `warning` and `finding` stand out."""

    text: str
    tone: Literal["plain", "warning", "finding", "muted"] = "plain"
    kind: Literal["text"] = "text"


@dataclass(frozen=True)
class Link:
    """A way to another page that lies beside this one; `text` says what it holds."""

    label: str
    target: str  # relative, ours and never of the data
    text: str
    kind: Literal["link"] = "link"


@dataclass(frozen=True)
class Items:
    """A short list of sentences."""

    items: Sequence[str]
    heading: str = ""
    tone: Literal["plain", "warning"] = "plain"
    kind: Literal["items"] = "items"


@dataclass(frozen=True)
class Charts:
    """Charts side by side, in the order given."""

    charts: Sequence[Chart]
    heading: str = ""
    kind: Literal["charts"] = "charts"


@dataclass(frozen=True)
class Figures:
    """Key figures: (name, value, what stands beside it)."""

    figures: Sequence[tuple[str, str, str]]
    kind: Literal["figures"] = "figures"


@dataclass(frozen=True)
class Columns:
    """Blocks side by side where there is room."""

    blocks: Sequence[Block]
    kind: Literal["columns"] = "columns"


@dataclass(frozen=True)
class Group:
    """Blocks under a heading that has an address of its own."""

    id: str
    title: str
    blocks: Sequence[Block]
    tag: str = ""
    tone: Tone = "plain"
    kind: Literal["group"] = "group"


@dataclass(frozen=True)
class Step:
    """Something to do: what, why (with the figure), and how."""

    title: str
    why: str
    how: str


@dataclass(frozen=True)
class Steps:
    """What to do, most urgent first."""

    steps: Sequence[Step]
    kind: Literal["steps"] = "steps"


@dataclass(frozen=True)
class Details:
    """Folded away until asked for: preformatted text."""

    summary: str
    text: str
    kind: Literal["details"] = "details"


Block = Text | Link | Items | Table | Columns | Charts | Figures | Group | Steps | Details


@dataclass(frozen=True)
class Section:
    """One page: a question, its answer in a sentence, and what stands behind it; `missing` says why it is empty."""

    id: str
    title: str
    short: str  # for a narrow screen
    answer: str = ""
    lead: str = ""
    blocks: Sequence[Block] = ()
    missing: str = ""


@dataclass
class Footnotes:
    """Numbers reasons as a table meets them; the same reason keeps its number.

    >>> notes = Footnotes()
    >>> [notes.number("few rows"), notes.number("no failures"), notes.number("few rows")]
    [1, 2, 1]
    """

    reasons: list[str] = field(default_factory=list)

    def number(self, reason: str) -> int:
        """The number of a reason, from 1."""
        if reason not in self.reasons:
            self.reasons.append(reason)
        return self.reasons.index(reason) + 1


def as_number(value: Any) -> float | None:
    """A finite number, or None for anything else (true and false included)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def count(value: Any) -> str:
    """Thousands in groups; an em dash for none.

    >>> count(1036800), count(None)
    ('1,036,800', '—')
    """
    number = as_number(value)
    return EM_DASH if number is None else f"{number:,.0f}"


def number(value: Any, digits: int = 3) -> str:
    """Significant digits without an exponent where a person can read it.

    >>> number(0.91234), number(12345.6), number(1.5e-6), number(0), number(9.99, 2)
    ('0.912', '12,300', '1.50e-06', '0', '10')
    """
    value = as_number(value)
    if value is None:
        return EM_DASH
    if value == 0:
        return "0"
    value = float(f"{value:.{digits - 1}e}")  # first, or 9.99 becomes 10.0 instead of 10
    size = math.floor(math.log10(abs(value)))
    if size < -4 or size > 8:
        return f"{value:.{digits - 1}e}"
    return f"{value:,.{max(digits - 1 - size, 0)}f}"


def percent(value: Any, digits: int = 2) -> str:
    """A share as per cent.

    >>> percent(0.00052), percent(0.25), percent(0.0), percent(1)
    ('0.052 %', '25 %', '0 %', '100 %')
    """
    share = as_number(value)
    return EM_DASH if share is None else f"{number(share * 100, 3 if abs(share) >= 0.9995 else digits)} %"


def percent_interval(low: Any, high: Any) -> str:
    """An interval of a share; empty where a bound is missing.

    >>> percent_interval(0.0003, 0.0009)
    '0.030 to 0.090 %'
    """
    if as_number(low) is None or as_number(high) is None:
        return ""
    return f"{percent(low).removesuffix(' %')} to {percent(high)}"


def interval(pair: Any, digits: int = 2) -> str:
    """A pair of bounds as text; empty where there is none.

    >>> interval([0.85, 0.941], 3), interval(None)
    ('0.850 to 0.941', '')
    """
    if not isinstance(pair, list | tuple) or len(pair) != 2 or as_number(pair[0]) is None or as_number(pair[1]) is None:
        return ""
    return f"{number(pair[0], digits)} to {number(pair[1], digits)}"


def hours(value: Any) -> str:
    """Hours; below one in minutes, and with days beside them from two days on.

    >>> hours(0.056), hours(7.25), hours(93)
    ('3.4 min', '7.2 h', '93 h (3.9 days)')
    """
    span = as_number(value)
    if span is None:
        return EM_DASH
    if 0 < abs(span) < 1:
        return f"{number(span * 60, 2)} min"
    if abs(span) < 48:
        return f"{number(span, 2)} h"
    return f"{span:,.0f} h ({span / 24:,.1f} days)"


def short_hours(value: Any) -> str:
    """Hours alone, for a table.

    >>> short_hours(93.4), short_hours(None)
    ('93 h', '—')
    """
    return hours(value).split(" (")[0]


def plural(value: int, one: str, many: str = "") -> str:
    """A count with its noun.

    >>> plural(1, "failure"), plural(2, "failure")
    ('1 failure', '2 failures')
    """
    return f"{value:,} {one if value == 1 else many or one + 's'}"


def when(value: Any) -> str:
    """A time for people, in UTC; anything unreadable as it stands.

    >>> when("2025-02-03T04:05:06+00:00")
    '2025-02-03 04:05'
    """
    moment = parse_time(value)
    return f"{moment:%Y-%m-%d %H:%M}" if moment else (EM_DASH if value is None else str(value))


def parse_time(value: Any) -> dt.datetime | None:
    """An ISO time as UTC (a time without a zone is UTC); None where it is none."""
    if isinstance(value, dt.datetime):
        moment = value
    else:
        try:
            moment = dt.datetime.fromisoformat(str(value))
        except ValueError:
            return None
    return moment.replace(tzinfo=dt.UTC) if moment.tzinfo is None else moment.astimezone(dt.UTC)


def as_map(value: Any) -> Mapping[str, Any]:
    """A mapping, or an empty one for anything else: figures of others may be null."""
    return value if isinstance(value, Mapping) else {}


def sentence_list(parts: Sequence[str]) -> str:
    """Parts as in a sentence.

    >>> sentence_list(["a", "b", "c"])
    'a, b and c'
    """
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1] if parts else ""

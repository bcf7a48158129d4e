"""What a notice says: a page of one alert, many pages as one message, the digest of a day.

Plain text of at most MOST_CHARACTERS. Names come from data: they are shortened, take no line of their own, and call
nobody by `@` or `<`.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import re
from collections.abc import Sequence
from typing import Any

from flows.service.delivery import Message
from flows.service.tables import Alert, NoticeKind, Standing
from pipeline.alert_details import NOT_A_DIAGNOSIS
from pipeline.errors import printable

MOST_CHARACTERS = 3800  # of a body: the narrowest of the usual receivers takes 4,096
MOST_NAME = 80
MOST_BINS = 3
MOST_ROWS = 1_000_000_000
TIERS = {"page": "Pages", "low": "Low", None: "No data"}  # in the order of a digest


def shown(name: str) -> str:
    r"""A name of the data as messages show it.

    >>> shown("pump\n7 " + "x" * 100)
    'pump\\n7 xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx…'
    >>> ascii(shown("@everyone <!channel>"))
    "'@\\u200beveryone <\\u200b!channel>'"
    """
    line = printable(name).replace("\n", "\\n")
    line = line if len(line) <= MOST_NAME else line[: MOST_NAME - 1] + "…"
    return re.sub(r"[@<]", "\\g<0>\u200b", line)  # chat programs take @everyone and <!channel> for commands


def page_text(alert: Alert, attempt: int) -> Message:
    """One alert, told at once.

    Args:
        alert: that pages.
        attempt: which try this is, from 1.
    """
    details, name = alert.details, shown(alert.machine_id)
    lines = [f"{name} pages since {_moment(alert.paged_at or alert.opened_at)}, {_standing(alert)}."]
    peak, agreed, bins = details.get("peak"), details.get("agreed") or [], details.get("top_bins") or []
    if peak:
        lines.append(f"Peak {_moment(alert.peak_at)}: {_rarity(peak.get('tail_probability'))}.")
        lines.append(f"Row {peak.get('row')} of {shown(str(peak.get('file')))}.")
    if agreed:
        lines.append(f"Detectors that agree: {', '.join(shown(str(detector)) for detector in agreed)}.")
    if bins:
        lines.append(f"Where in the spectrum: {'; '.join(_band(part) for part in bins[:MOST_BINS])}.")
    lines.append(f"Release {alert.release_id}.")
    lines.append(f"Answer: hearken alerts ack {alert.id} (or confirm, dismiss); more: hearken alerts show {alert.id}")
    return _message(f"Hearken: {name} pages (alert {alert.id})", lines, [alert], NoticeKind.PAGE, attempt)


def pages_text(alerts: Sequence[Alert], attempt: int) -> Message:
    """Many alerts that page at the same time, as one message."""
    lines = [
        f"{len(alerts)} machines page at once, so this is one message. Where so many change together, look at the "
        "plant, the sensors and the data first."
    ]
    lines += _listed([_line(alert) for alert in _by_rarity(alerts)])
    lines.append("Answer: hearken alerts ack NUMBER (or confirm, dismiss); all: hearken alerts list")
    return _message(f"Hearken: {len(alerts)} pages at once", lines, alerts, NoticeKind.PAGE, attempt)


def digest_text(alerts: Sequence[Alert], attempt: int) -> Message:
    """The alerts of a day that do not page, by tier, the rarest first."""
    listed: list[str] = []
    for tier, heading in TIERS.items():
        group = _by_rarity([alert for alert in alerts if alert.tier == tier])
        if group:
            listed += [f"{heading} ({len(group)}):", *(_line(alert) for alert in group)]
    count = "1 alert" if len(alerts) == 1 else f"{len(alerts)} alerts"
    lines = [f"{count} since the last digest.", *_listed(listed)]
    lines.append("Answer: hearken alerts ack NUMBER (or confirm, dismiss); more: hearken alerts show NUMBER")
    return _message(f"Hearken: digest of {count}", lines, alerts, NoticeKind.DIGEST, attempt)


def key_of(alerts: Sequence[Alert], kind: NoticeKind) -> str:
    """The same for the same alerts, whenever it is asked."""
    told = "\n".join(f"{alert.id} {alert.machine_id}" for alert in sorted(alerts, key=lambda alert: alert.id))
    return f"hearken-{kind}-{hashlib.sha256(told.encode()).hexdigest()[:16]}"


def _message(title: str, lines: Sequence[str], alerts: Sequence[Alert], kind: NoticeKind, attempt: int) -> Message:
    key = key_of(alerts, kind)
    told = [*lines, f"Key {key}."]
    if attempt > 1:
        told.append(f"Try {attempt}: if you have had this key, an earlier try arrived and this tells nothing new.")
    return Message(title=title, body="\n".join([*told, NOT_A_DIAGNOSIS]), key=key, urgent=kind is NoticeKind.PAGE)


def _listed(lines: Sequence[str]) -> list[str]:
    """As many lines as a message holds, and how many more alerts there are."""
    kept, left = list[str](), MOST_CHARACTERS - 800  # for what stands before and after
    for number, line in enumerate(lines):
        left -= len(line) + 1
        if left < 0:
            rest = sum(1 for later in lines[number:] if later.startswith("- "))
            return [*kept, f"and {rest} more: hearken alerts list"]
        kept.append(line)
    return kept


def _line(alert: Alert) -> str:
    peak = alert.details.get("peak")
    told = _rarity(peak.get("tail_probability")) if peak else "no usable spectrum: sensor, cable, or off"
    return f"- {alert.id}: {shown(alert.machine_id)}, {_standing(alert)}, {told}"


def _standing(alert: Alert) -> str:
    opened = f"open since {_moment(alert.opened_at)}"
    return (
        opened
        if alert.standing is Standing.OPEN
        else f"closed ({_moment(alert.opened_at)} to {_moment(alert.last_at)})"
    )


def _by_rarity(alerts: Sequence[Alert]) -> list[Alert]:
    return sorted(alerts, key=lambda alert: (-(alert.peak_rarity or 0.0), alert.opened_at, alert.id))


def _rarity(tail: Any) -> str:
    """How rare a peak is, in words.

    >>> _rarity(0.0004), _rarity(1e-30), _rarity(None)
    ('as unusual as 1 in 2,500 healthy rows', 'rarer than 1 in 1,000,000,000 healthy rows', 'how unusual is not known')
    """
    if not isinstance(tail, int | float):
        return "how unusual is not known"
    if tail < 1 / MOST_ROWS:
        return f"rarer than 1 in {MOST_ROWS:,} healthy rows"
    return f"as unusual as 1 in {1 / tail:,.0f} healthy rows"


def _band(part: dict[str, Any]) -> str:
    near = ", ".join(shown(str(name)) for name in (part.get("near") or [])[:MOST_BINS])
    return shown(str(part.get("band"))) + (f" (near {near})" if near else "")


def _moment(moment: dt.datetime | None) -> str:
    return "at an unknown time" if moment is None else f"{moment.astimezone(dt.UTC):%Y-%m-%d %H:%M} UTC"

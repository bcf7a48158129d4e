"""Names from data, made safe to show: nothing hidden, nothing that turns the text around it, nothing that runs.

A machine may be called anything. HTML is escaped where it is written (the template, or `plot_label` for plotly, which
reads a subset of HTML); here control characters become visible and the direction of a name stays its own.
"""

from __future__ import annotations

import html
import unicodedata

FIRST_STRONG_ISOLATE, POP_ISOLATE = "\u2068", "\u2069"
ISOLATES = "\u2066\u2067\u2068\u2069"
OVERRIDES = "\u200e\u200f\u202a\u202b\u202c\u202d\u202e"
LONG = 60  # characters from which the page clamps a name until it is asked for


def visible(text: str, keep: str = "\n\t") -> str:
    """The text with every control character, and every turn of direction, by its number.

    >>> visible("pump\\x00\\x1b[31m"), visible("a\\u202egpj"), visible("\\ud800")
    ('pump[U+0000][U+001B][31m', 'a[U+202E]gpj', '�')
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(character if character in keep else _shown(character) for character in text)


def _shown(character: str) -> str:
    kind = unicodedata.category(character)
    if kind in ("Cc", "Zl", "Zp") or character in OVERRIDES:
        return f"[U+{ord(character):04X}]"
    return "\ufffd" if kind == "Cs" else character


def isolated(text: object) -> str:
    """A name for the middle of a sentence: its direction ends with it.

    >>> isolated("press-1") == "\\u2068press-1\\u2069"
    True
    """
    own = "".join(f"[U+{ord(c):04X}]" if c in ISOLATES else c for c in str(text))
    return f"{FIRST_STRONG_ISOLATE}{visible(own, keep='')}{POP_ISOLATE}"


def shortened(text: object, most: int) -> str:
    """At most `most` characters, the middle left out.

    >>> shortened("abcdefghij", 7), shortened("abc", 7)
    ('abc…hij', 'abc')
    """
    own = str(text)
    if len(own) <= most:
        return own
    half = (most - 1) // 2
    return f"{own[: most - 1 - half]}…{own[-half:]}"


def plot_label(text: object, most: int = 28) -> str:
    """A name as plotly may show it: short, isolated, and without the HTML that plotly would read.

    >>> plot_label("<a href='x'>")[1:-1]
    "&lt;a href='x'&gt;"
    """
    return escaped(isolated(shortened(text, most)))


def escaped(text: str) -> str:
    """Text that plotly shows as it is; it knows no entity of a quotation mark."""
    return html.escape(text, quote=False)

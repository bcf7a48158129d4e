"""What is wrong with a person's files, as data: how bad, in which file, on which line, what was got, what expected.

A reading error of a stage and a line of `hearken check` come from the same finding.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum

from pipeline.errors import ContractError


class Severity(StrEnum):
    """How bad a finding is."""

    ERROR = "error"  # the data cannot be read, or would be misread
    WARNING = "warning"  # the data can be read, and a person should look
    NOTE = "note"  # good to know


@dataclass(frozen=True)
class Finding:
    """One thing that a person should know of one place of a file."""

    severity: Severity
    file: str  # relative to the plant's folder
    place: str  # "line 3", "row 3", or empty: the whole file
    what: str  # the column, key or fact that is meant
    got: str
    expected: str

    @property
    def where(self) -> str:
        """File and place."""
        return f"{self.file}, {self.place}" if self.place else self.file

    def error(self) -> ContractError:
        """The finding as the error that reading the file raises.

        >>> str(Finding(Severity.ERROR, "maintenance.csv", "line 3", "tag", "'fail'", "failure").error())
        "tag: got 'fail', expected failure, in maintenance.csv, line 3."
        """
        return ContractError.of(self.what, got=self.got, expected=self.expected, where=self.where)

    @classmethod
    def of_message(cls, message: str, file: str) -> Finding:
        """An error's message in the project's form as a finding; of another form, all of it is what was got.

        >>> Finding.of_message("bins: got 3, expected 4, in a.csv, line 7.", "a.csv").place
        'line 7'
        """
        found = re.fullmatch(
            r"(?P<what>.*?): got (?P<got>.*?), expected (?P<expected>.*), in (?P<where>.*)\.", message, re.S
        )
        if found is None:
            return cls(Severity.ERROR, file, "", "the file", message, "a file that can be read")
        place = re.search(r"\b(?:line|row) \d+", found["got"]) or re.search(r"\b(?:line|row) \d+$", found["where"])
        return cls(Severity.ERROR, file, place[0] if place else "", found["what"], found["got"], found["expected"])

    def to_json(self) -> dict[str, str]:
        """Plain text by name."""
        return {name: str(value) for name, value in asdict(self).items()}


def errors_of(findings: Iterable[Finding]) -> list[Finding]:
    """The findings that keep the data from being read."""
    return [finding for finding in findings if finding.severity is Severity.ERROR]


def nearest(name: str, known: Sequence[str]) -> str | None:
    """The known name that a mistyped one most likely means; None where none is near.

    >>> nearest("Pump-03", ["pump-01", "pump-03"]), nearest("breakdown", ["failure", "repair"])
    ('pump-03', None)
    """
    folded = {known_name.casefold(): known_name for known_name in reversed(known)}
    found = difflib.get_close_matches(name.casefold()[:300], list(folded), n=1, cutoff=0.7)
    return folded[found[0]] if found else None

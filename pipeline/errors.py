"""Every error that Hearken raises on purpose.

    HearkenError
    ├── UserError            a person's mistake: one message, exit code 2, no traceback
    │   ├── ParamsError      params.yaml: unknown key, value out of range
    │   ├── ContractError    data that breaks the data contract
    │   │   └── TooFewRows   too few later rows to recalibrate with: time may mend it
    │   ├── ReleaseError     a release that is unknown, damaged or does not fit
    │   └── WorkspaceError   git, DVC or Prefect are not set up as a command needs them
    └── StageFailed          a stage of the graph ended with an error of its own
        └── WorkerGone       a crashed job, and no worker of its pool is left

Four more are signals, which are caught inside and reach nobody: UploadTrouble, UnreadableFile, DeadNetwork, WorkerLost.
A message says what was got, what was expected, and where.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path


class HearkenError(Exception):
    """Root of the project's errors."""


class UserError(HearkenError):
    """A mistake that a person can mend; the command line prints it and exits with 2."""

    exit_code = 2


class ParamsError(UserError):
    """`params.yaml` holds an unknown key or a value out of range."""


class ContractError(UserError):
    """Data that breaks the data contract.

    >>> str(ContractError.of("bins", got=63, expected="64", where="fleet.yaml"))
    'bins: got 63, expected 64, in fleet.yaml.'
    """

    @classmethod
    def of(cls, what: str, *, got: object, expected: object, where: object) -> ContractError:
        """One message in the project's form."""
        return cls(f"{what}: got {got}, expected {expected}, in {where}.")


class ReleaseError(UserError):
    """A release that is unknown, damaged, or does not fit the data."""


class WorkspaceError(UserError):
    """git, DVC or Prefect are not set up as the command needs them."""


class StageFailed(HearkenError):
    """A stage of the graph ended with an error; its own message has been shown."""

    def __init__(self, stage: str, exit_code: int, message: str = "") -> None:
        self.stage, self.exit_code, self.message = stage, exit_code, message
        super().__init__(f"stage {stage} ended with exit code {exit_code}" + (f": {message}" if message else ""))


def printable(text: str) -> str:
    r"""A text that a terminal shows and does not obey: control and direction characters are escaped, but line ends.

    Names come from data, and may hold anything.

    >>> print(printable("pump \x1b[2J \u202e7"))
    pump \x1b[2J \u202e7
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


def run_reporting_errors(main: Callable[[], None]) -> None:
    """Run a program's main function: a UserError becomes one line on stderr and exit code 2.

    Where HEARKEN_STAGE_TIMES names a file, one JSON line with the program's arguments and seconds is appended to it.
    """
    start = time.perf_counter()
    try:
        main()
    except UserError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    times = os.environ.get("HEARKEN_STAGE_TIMES")
    if times:
        name = "@".join([Path(sys.argv[0]).stem, *sys.argv[1:]])
        with Path(times).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"stage": name, "seconds": time.perf_counter() - start}) + "\n")

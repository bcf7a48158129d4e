"""One message to one address through Apprise, in a process of its own, which can be ended and whose logs nobody keeps.

Apprise, and the libraries that its notifiers use, log addresses and wait as long as they like. So this file is also a
program: the address reaches it on standard input, never in arguments or the environment, its output goes nowhere, and
its exit code is all it says.
"""

from __future__ import annotations

import json
import logging
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, SecretStr

ANSWER_SECONDS = 10.0  # of an address
START_SECONDS = 50.0  # of the program, on a busy machine
TAKEN, UNKNOWN, REFUSED = 0, 3, 4
PAGE_VARIABLE, LOW_VARIABLE = "HEARKEN_NOTIFY_PAGE", "HEARKEN_NOTIFY_LOW"


class Addresses(BaseModel):
    """Whom pages and digests reach: Apprise URLs, shown nowhere.

    >>> Addresses.of(page="json://crew:secret@10.0.0.5/ mailto://me:secret@example.com", low=None)
    Addresses(page=(SecretStr('**********'), SecretStr('**********')), low=())
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    page: tuple[SecretStr, ...] = ()
    low: tuple[SecretStr, ...] = ()

    @classmethod
    def of(cls, *, page: str | None, low: str | None) -> Addresses:
        """From texts of URLs with white space between them, as a secret block holds them; an address counts once."""
        page_urls, low_urls = (tuple(dict.fromkeys((text or "").split())) for text in (page, low))
        return cls(page=tuple(map(SecretStr, page_urls)), low=tuple(map(SecretStr, low_urls)))

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Addresses:
        """From HEARKEN_NOTIFY_PAGE and HEARKEN_NOTIFY_LOW.

        >>> Addresses.from_environment({"HEARKEN_NOTIFY_LOW": "json://10.0.0.5/"})
        Addresses(page=(), low=(SecretStr('**********'),))
        """
        return cls.of(page=environment.get(PAGE_VARIABLE), low=environment.get(LOW_VARIABLE))


@dataclass(frozen=True, kw_only=True)
class Message:
    """Plain text; `key` is the same whenever the same is told again, so that a receiver can drop repeats."""

    title: str
    body: str
    key: str
    urgent: bool


def scheme_of(address: SecretStr) -> str:
    """The kind of an address: all of it that may be shown.

    >>> scheme_of(SecretStr("mailtos://me:secret@example.com")), scheme_of(SecretStr("secret"))
    ('mailtos', 'address')
    """
    found = re.match(r"([a-z0-9]{1,16})://", address.get_secret_value(), re.IGNORECASE)
    return found[1].lower() if found else "address"


def deliver(address: SecretStr, message: Message, seconds: float = ANSWER_SECONDS) -> str | None:
    """Send a message to an address; None: it was taken, else why not, in words that do not hold the address.

    Args:
        address: an Apprise URL.
        message: what to tell.
        seconds: after which an address that has not answered is given up.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-P", str(Path(__file__).resolve())],
            input=json.dumps(asdict(message) | {"address": address.get_secret_value(), "seconds": seconds}),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            text=True,
            timeout=seconds + START_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return "the notifier did not end"
    except OSError as error:
        return f"the notifier did not start ({error.strerror})"
    reasons = {
        TAKEN: None,
        UNKNOWN: "Apprise knows no such kind of address",
        REFUSED: "it could not be reached, or refused the message",
        -signal.SIGALRM: f"no answer within {seconds:g} s",
    }
    return reasons.get(done.returncode, f"the notifier ended with exit code {done.returncode}")


def main() -> None:
    """Send what standard input says, and end with TAKEN, UNKNOWN or REFUSED, or by SIGALRM where nobody answers."""
    logging.disable(logging.CRITICAL)
    wanted = json.load(sys.stdin)
    from apprise import Apprise, AppriseAsset, NotifyFormat, NotifyType
    from apprise.plugins.custom_form import NotifyForm
    from apprise.plugins.custom_json import NotifyJSON
    from apprise.plugins.custom_xml import NotifyXML
    from apprise.url import URLBase

    # 4 s otherwise; an address may still say `?rto=`
    URLBase.socket_connect_timeout = URLBase.socket_read_timeout = float(wanted["seconds"])
    apprise = Apprise(asset=AppriseAsset(app_id="Hearken", app_desc="Hearken", async_mode=False))
    if not apprise.add(wanted["address"]):
        sys.exit(UNKNOWN)
    for server in apprise:
        if isinstance(server, NotifyJSON | NotifyForm | NotifyXML):
            server.headers["Idempotency-Key"] = wanted["key"]
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, float(wanted["seconds"]))
    taken = apprise.notify(
        title=wanted["title"],
        body=wanted["body"],
        notify_type=NotifyType.WARNING if wanted["urgent"] else NotifyType.INFO,
        body_format=NotifyFormat.TEXT,  # Apprise escapes it where an address wants HTML
    )
    sys.exit(TAKEN if taken else REFUSED)


if __name__ == "__main__":
    main()

"""What a search tries: every combination of the values given, or some drawn at random from values and ranges."""

from __future__ import annotations

import datetime as dt
import hashlib
import itertools
import math
import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline.errors import UserError

MOST_EXPERIMENTS = 200
NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
RANGE = re.compile(rf"({NUMBER})\.\.({NUMBER})(:log)?")
KEY = re.compile(r"[A-Za-z_][\w]*(?:\.[A-Za-z_][\w]*)*")
MOST_NAME = 48
DRAWS_PER_EXPERIMENT = 50  # before a search among few combinations gives up finding new ones


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included; whole ones where both are written so, even or in log."""

    low: float
    high: float
    log: bool
    whole: bool

    def draw(self, source: random.Random) -> float | int:
        """One number.

        >>> Range(4, 32, True, True).draw(random.Random(0))
        23
        """
        low, high = (self.low, self.high + 1) if self.whole else (self.low, self.high)
        drawn = math.exp(source.uniform(math.log(low), math.log(high))) if self.log else source.uniform(low, high)
        if self.whole:
            return min(int(drawn // 1), int(self.high))
        return min(max(float(f"{drawn:.4g}"), self.low), self.high)


@dataclass(frozen=True)
class Axis:
    """One setting of a search, by its dotted name, and what it may be."""

    key: str
    values: tuple[Any, ...] = ()
    span: Range | None = None


def parse_axis(text: str) -> Axis:
    """`key=value,value` or `key=low..high` (`:log` for a log scale); values are YAML, lists in brackets.

    Raises:
        UserError: of another form.

    >>> parse_axis("train.autoencoder.channels=[8,16],[16,32]").values
    ([8, 16], [16, 32])
    >>> parse_axis("train.vae.beta=0.01..1:log").span
    Range(low=0.01, high=1.0, log=True, whole=False)
    """
    key, equals, values = text.partition("=")
    key = key.strip()
    if not equals or not KEY.fullmatch(key) or not values.strip():
        raise UserError(
            f"--set: got {text!r}, expected key=value,value or key=low..high, such as train.vae.beta=0.1,1."
        )
    if found := RANGE.fullmatch(values.strip()):
        return Axis(key, span=_range(text, *found.groups()))
    parsed = tuple(_value(text, part) for part in _parts(values))
    if len({repr(value) for value in parsed}) < len(parsed):
        raise UserError(f"--set: got {text!r}, expected each value once.")
    return Axis(key, parsed)


def _range(text: str, low: str, high: str, log: str | None) -> Range:
    whole = all(re.fullmatch(r"[-+]?\d+", end) for end in (low, high))
    span = Range(float(low), float(high), log is not None, whole)
    if not span.low < span.high or (span.log and span.low <= 0):
        expected = "a range that rises" + (" and begins above 0" if span.log else "")
        raise UserError(f"--set: got {text!r}, expected {expected}.")
    return span


def _parts(text: str) -> list[str]:
    """Split at commas outside of brackets."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "[{") - (character in "]}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def _value(text: str, part: str) -> Any:
    try:
        value = YAML(typ="safe").load(part)
    except (YAMLError, ValueError):  # a date that there is not
        raise UserError(f"--set: got {text!r}, expected values that are YAML.") from None
    if not part.strip():
        raise UserError(f"--set: got {text!r}, expected no empty value (null is written null).")
    return part.strip() if isinstance(value, dt.date) else value  # params.yaml holds dates as text


def combinations(axes: Sequence[Axis], draws: int | None, seed: int) -> list[dict[str, Any]]:
    """The settings to try: a grid of all values, or `draws` different combinations, seeded.

    Raises:
        UserError: nothing to try, a key twice, a range in a grid, or more than MOST_EXPERIMENTS.

    >>> combinations([parse_axis("a=1,2"), parse_axis("b=x")], None, 0)
    [{'a': 1, 'b': 'x'}, {'a': 2, 'b': 'x'}]
    """
    if not axes:
        raise UserError("--set: got none, expected at least one, such as --set train.autoencoder.latent=4,8,12.")
    twice = [key for key, times in Counter(axis.key for axis in axes).items() if times > 1]
    if twice:
        raise UserError(f"--set: got {twice[0]} twice, expected each key once.")
    if draws is None:
        spans = [axis.key for axis in axes if axis.span is not None]
        if spans:
            raise UserError(f"--set: got a range for {spans[0]}, expected values; a range needs --random N.")
        size = math.prod(len(axis.values) for axis in axes)
        _refuse_many(size)
        return [
            dict(zip((axis.key for axis in axes), values, strict=True))
            for values in itertools.product(*(axis.values for axis in axes))
        ]
    _refuse_many(draws)
    source, found = random.Random(seed), dict[str, dict[str, Any]]()  # noqa: S311  no secret
    for _ in range(draws * DRAWS_PER_EXPERIMENT):
        one = {axis.key: axis.span.draw(source) if axis.span else source.choice(axis.values) for axis in axes}
        found.setdefault(repr(one), one)
        if len(found) == draws:
            break
    return list(found.values())


def _refuse_many(size: int) -> None:
    if size > MOST_EXPERIMENTS:
        raise UserError(
            f"experiments: got {size:,}, expected at most {MOST_EXPERIMENTS}; --random N draws some of them."
        )


def names_of(tried: Sequence[Mapping[str, Any]]) -> list[str]:
    """A name for each combination, the same whenever it is tried again; made of the last words of keys, and values.

    >>> names_of([{"train.vae.beta": 0.1, "train.vae.latent": 4}, {"train.vae.beta": 0.1, "train.vae.latent": 8}])
    ['beta-0.1-latent-4', 'beta-0.1-latent-8']
    """
    keys = list(tried[0]) if tried else []
    short = {key: key.rsplit(".", 1)[-1] for key in keys}
    clashing = {word for word, times in Counter(short.values()).items() if times > 1}
    short = {key: "-".join(key.split(".")[-2:]) if word in clashing else word for key, word in short.items()}
    names = []
    for one in tried:
        plain = "-".join(f"{short[key]}-{_word(value)}" for key, value in one.items())
        name = re.sub(r"[^A-Za-z0-9.]+|\.(?![0-9])", "-", plain).strip("-.")
        names.append(name if len(name) <= MOST_NAME and _is_told(one) else longer_name(name, one))
    alike = {name for name, times in Counter(names).items() if times > 1}
    return [longer_name(name, one) if name in alike else name for name, one in zip(names, tried, strict=True)]


def longer_name(name: str, one: Mapping[str, Any]) -> str:
    """A name with a digest of whole keys and values behind it, where the name alone does not tell them.

    >>> longer_name("latent-8", {"train.vae.latent": 8}) == longer_name("latent-8", {"train.autoencoder.latent": 8})
    False
    """
    digest = hashlib.sha256(repr(sorted(one.items())).encode()).hexdigest()[:6]
    return f"{name[:MOST_NAME]}-{digest}"


def _word(value: Any) -> str:
    return "null" if value is None else str(value)


def _is_told(one: Mapping[str, Any]) -> bool:
    """Whether all values can be read from a name: plain numbers that are not negative, and words."""
    return all(re.fullmatch(r"[A-Za-z0-9.]+", _word(value)) is not None for value in one.values())

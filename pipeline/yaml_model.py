"""YAML text as a checked model: every mistake in it, with its line."""

from __future__ import annotations

import re
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from pipeline.findings import Finding, Severity

M = TypeVar("M", bound=BaseModel)


def checked_model(text: str, model: type[M], where: str) -> tuple[M | None, list[Finding]]:
    """The model that a YAML text describes, or None and everything that is wrong with the text.

    >>> class Pump(BaseModel, extra="forbid"):
    ...     speed_rpm: float = 1500
    >>> checked_model("\\nsped_rpm: 3", Pump, "pump.yaml")[1][0].error()
    ContractError('sped_rpm: got an unknown key, expected one of speed_rpm, in pump.yaml, line 2.')
    """
    try:
        values = yaml.safe_load(text)
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date such as 2025-02-30
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        line = f"line {mark.line + 1}" if mark is not None else ""
        got = f"text that is not YAML ({problem})"
        return None, [Finding(Severity.ERROR, where, line, "the text", got, "a mapping")]
    values = {} if values is None else values
    if not isinstance(values, dict):
        got = f"a {type(values).__name__}"
        return None, [Finding(Severity.ERROR, where, "line 1", "the whole file", got, "a mapping")]
    findings = _repeated_keys(root, where, set())
    try:
        return (None if findings else model.model_validate(values)), findings
    except ValidationError as error:
        findings += [_finding(item, where, root, model) for item in error.errors()]
        return None, sorted(findings, key=lambda finding: int(finding.place.split()[-1]))


def _finding(item: Any, where: str, root: yaml.Node | None, model: type[BaseModel]) -> Finding:
    message = str(item["msg"])
    keys = [str(key) for key in item["loc"]]
    keys += _key_meant(message, root, keys) if item["type"] == "value_error" else []
    if item["type"] == "extra_forbidden":
        got, expected = "an unknown key", f"one of {', '.join(_known_keys(model, keys[:-1]))}"
    elif item["type"] == "value_error":  # from our own validators: "got this, expected that"
        got, _, expected = message.removeprefix("Value error, ").removeprefix("got ").partition(", expected ")
    else:
        got, expected = repr(item["input"]), message.removeprefix("Input should be ").removeprefix("a ")
    what = ".".join(keys) or "the whole file"
    return Finding(Severity.ERROR, where, f"line {_line_of(root, keys)}", what, got, expected)


def _known_keys(model: type[BaseModel], keys: list[str]) -> list[str]:
    """The keys that the section at this place may hold, as the file spells them."""
    for key in keys:
        field = next((f for n, f in model.model_fields.items() if key in (n, f.alias)), None)
        kinds = [] if field is None else [field.annotation, *get_args(field.annotation)]
        models = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if not models:
            return []
        model = models[0]
    return [field.alias or name for name, field in model.model_fields.items()]


def _key_meant(message: str, root: yaml.Node | None, keys: list[str]) -> list[str]:
    """The key of a section that an error about the section as a whole names."""
    node = _deepest(root, keys)[1]
    held = {str(key.value) for key, _ in node.value} if isinstance(node, yaml.MappingNode) else set()
    return [word for word in re.findall(r"\w+", message) if word in held][:1]


def _line_of(root: yaml.Node | None, keys: list[str]) -> int:
    """The line of the deepest key that the text really holds."""
    return _deepest(root, keys)[0]


def _deepest(root: yaml.Node | None, keys: list[str]) -> tuple[int, yaml.Node | None]:
    line, node = 1, root
    for key in keys:
        if isinstance(node, yaml.MappingNode):
            found = next(((k, v) for k, v in node.value if k.value == key), None)
        elif isinstance(node, yaml.SequenceNode) and key.isdigit() and int(key) < len(node.value):
            found = (node.value[int(key)], node.value[int(key)])
        else:
            found = None
        if found is None:
            break
        line, node = found[0].start_mark.line + 1, found[1]
    return line, node


def _repeated_keys(node: yaml.Node | None, where: str, seen: set[int]) -> list[Finding]:
    """Keys that stand twice in one mapping: YAML would silently take the last."""
    if node is None or id(node) in seen:  # an alias may lead back to where it stands
        return []
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        return [finding for item in node.value for finding in _repeated_keys(item, where, seen)]
    if not isinstance(node, yaml.MappingNode):
        return []
    findings, lines = [], dict[str, int]()
    for key, value in node.value:
        line, name = key.start_mark.line + 1, str(key.value)
        if name in lines:
            got = f"the key again (first on line {lines[name]})"
            findings.append(Finding(Severity.ERROR, where, f"line {line}", name, got, "each key once"))
        lines.setdefault(name, line)
        findings += _repeated_keys(value, where, seen)
    return findings

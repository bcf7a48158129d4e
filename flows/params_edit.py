"""Settings replaced in the text of a params.yaml: only their values change, everything else stays as it was typed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml


def with_values(text: str, values: Mapping[str, object]) -> str | None:
    """The text with other values at dotted names; None where one of them stands nowhere, or over several lines.

    Values that stand on several lines within brackets are replaced as well. The text must be YAML.

    >>> with_values("a: 1  # one\\nb: {c: [1,\\n 2], d: x}\\n", {"a": 2.5, "b.c": [3, 4]})
    'a: 2.5  # one\\nb: {c: [3, 4], d: x}\\n'
    >>> with_values("a: 1\\n", {"b": 2}) is None
    True
    """
    root = yaml.compose(text)
    places: list[tuple[int, int, str]] = []
    for dotted, value in values.items():
        node = _node_at(root, dotted.split("."))
        if node is None or (isinstance(node, yaml.CollectionNode) and not node.flow_style):
            return None
        written = as_flow(value)
        empty = node.start_mark.index == node.end_mark.index  # `key:` with nothing after it
        places.append((node.start_mark.index, node.end_mark.index, f" {written}" if empty else written))
    for begin, end, written in sorted(places, reverse=True):
        text = text[:begin] + written + text[end:]
    return text


def as_flow(value: object) -> str:
    """A value as YAML on one line.

    >>> as_flow([1, None, "2025-01-01"]), as_flow(1e-05)
    ("[1, null, '2025-01-01']", '1.0e-05')
    """
    text: str = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True, sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...")


def _node_at(node: Any, path: list[str]) -> yaml.Node | None:
    for name in path:
        if not isinstance(node, yaml.MappingNode):
            return None
        node = next((value for key, value in node.value if key.value == name), None)
    return node if isinstance(node, yaml.Node) else None

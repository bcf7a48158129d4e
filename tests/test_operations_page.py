"""What docs/operations.md names exists: commands, options, variables, settings, metrics, deployments."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest
import sqlalchemy as sa
import typer.main
import yaml
from prometheus_client import generate_latest

from flows.cli import app
from flows.service.metrics import registry_of
from pipeline.params import Params

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/operations.md").read_text()


def code() -> str:
    """All that is set as code."""
    return "\n".join(block or inline for block, inline in re.findall(r"```\w*\n(.*?)```|`([^`\n]+)`", PAGE, re.DOTALL))


def test_every_command_and_option_exists() -> None:
    root = typer.main.get_command(app)
    found = re.findall(r"\bhearken ((?:[a-z][a-z-]*)(?: [a-z][a-z-]*)?)([^\n|#;]*)", code())
    assert len(found) > 20
    for words, rest in found:
        first, *more = words.split()
        assert first in root.commands, words
        command = root.commands[first]
        if hasattr(command, "commands"):
            assert more, words
            assert more[0] in command.commands, words
            command = command.commands[more[0]]
        known = {option for each in command.params for option in each.opts}
        for option in re.findall(r"(--[a-z][a-z-]*)", rest):
            assert option in known, (words, option)


def test_every_variable_is_one_that_is_read() -> None:
    from prefect.settings import Settings as PrefectSettings
    from prefect.settings.legacy import _get_settings_fields

    known, ours = set(_get_settings_fields(PrefectSettings)), (ROOT / "flows/settings.py").read_text()
    for name in set(re.findall(r"\b(?:PREFECT|HEARKEN)_[A-Z_]+[A-Z]\b", PAGE)):
        assert name in known or name in ours, name


@pytest.mark.parametrize(
    "name", sorted(set(re.findall(r"`((?:score|releases|recalibrate|retrain|notify)\.[a-z_.]+)`", PAGE)))
)
def test_every_setting_exists(name: str) -> None:
    value: object = Params()
    for part in name.split("."):
        assert hasattr(value, part), name
        value = getattr(value, part)


def test_every_metric_is_served(engine: sa.Engine) -> None:
    text = generate_latest(registry_of(engine)).decode()
    text += (ROOT / "flows/service/metrics.py").read_text()  # some are served once there is something to count
    named = set(re.findall(r"\bhearken_[a-z_]+", PAGE)) - {"hearken_restored"}
    assert len(named) > 5
    for name in named:
        assert name.removesuffix("_total").removesuffix("_info") in text, name


def test_every_deployment_stands_in_the_table() -> None:
    deployments = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    for each in deployments:
        assert re.search(rf"^\| `{each['name']}` \| {each['work_pool']['name']} \|", PAGE, re.MULTILINE), each["name"]


def test_the_table_says_when_each_run_ends_itself() -> None:
    for each in yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]:
        module, name = each["entrypoint"].removesuffix(".py").replace(".py:", ":").split(":")
        seconds = getattr(importlib.import_module(module.replace("/", ".")), name).timeout_seconds
        row = re.search(rf"^\| `{each['name']}` \|.*\| ([^|]+) \|$", PAGE, re.MULTILINE)
        assert row is not None
        if seconds is not None:
            told = f"{seconds / 3600:g} h" if seconds >= 3600 else f"{seconds / 60:g} min"
            assert row[1].split(",")[0] == told, each["name"]

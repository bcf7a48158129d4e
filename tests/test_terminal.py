"""What commands print: names of people and data are shown on one line and never obeyed."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from rich.console import Console

from flows.terminal import print_json, say, say_markup, shown, table

ROOT = Path(__file__).resolve().parent.parent
NASTY = "[red]pump\n\x1b[2J\u202e7[/red]"


def test_a_line_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    say("[red]pump[/red] \x1b[2J")
    say_markup(f"[bold]{shown(NASTY)}[/bold] is on")
    assert capsys.readouterr().out == "[red]pump[/red] \\x1b[2J\n[red]pump\\n\\x1b[2J\\u202e7[/red] is on\n"


def test_a_name_stands_on_one_line_of_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    made = table("machine", "rows", title=shown(NASTY))
    made.add_row(shown(NASTY), "7")
    Console(width=80).print(made)
    assert [line.split() for line in capsys.readouterr().out.splitlines() if "7" in line] == [
        ["[red]pump\\n\\x1b[2J\\u202e7[/red]"],
        ["[red]pump\\n\\x1b[2J\\u202e7[/red]", "7"],
    ]


def test_json_has_sorted_keys_and_numbers_only(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"b": 1, "a": [2]})
    assert capsys.readouterr().out == '{\n "a": [\n  2\n ],\n "b": 1\n}\n'
    with pytest.raises(ValueError, match="JSON compliant"):
        print_json({"a": float("nan")})


def test_a_folder_with_markup_in_its_name_is_named(
    tmp_path: Path, hearken: Callable[..., tuple[int, str, str]]
) -> None:
    code, out, _ = hearken("init", tmp_path, "[red]x[/red]")
    assert (code, out.startswith("[red]x[/red]: spectra/")) == (0, True)
    code, out, _ = hearken("simulate", tmp_path, "--out", "[bold]y", "--machines", 2, "--days", 1)
    assert (code, out.endswith(": [bold]y\n")) == (0, True)


def test_commands_share_one_shell() -> None:
    """None has its own way to print a line, to show a name or to find the database."""
    shared = {"say", "shown", "print_json", "number", "database", "settings"}
    for path in sorted((ROOT / "flows").glob("*command*.py")):
        tree = ast.parse(path.read_text())
        own = {node.name.strip("_") for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert not own & shared, path.name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["simulate"], "Missing option '--out'. See: hearken simulate --help"),
        (["what-if", "--n", "x"], "Invalid value for '--n': "),
        (["what-if", "--nope"], "No such option: --nope"),
        (["tune", "--jobs", "0"], "Invalid value for '--jobs' / '-j': Input should be greater than or equal to 1"),
        (["alerts", "show", "[red]"], "Invalid value for 'alert': "),
        (["alerts", "nope"], "See: hearken alerts --help"),
        (["nope"], "No such command 'nope'. See: hearken --help"),
        (["init", "a", "b"], "Got unexpected extra argument(s) (b). See: hearken init --help"),
    ],
)
def test_words_that_a_command_does_not_know_are_one_line_and_exit_code_2(
    tmp_path: Path, hearken: Callable[..., tuple[int, str, str]], arguments: list[str], message: str
) -> None:
    code, out, err = hearken(arguments[0], tmp_path, *arguments[1:])
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: ")
    assert message in err


@pytest.mark.parametrize(("arguments", "code"), [(["--help"], 0), (["alerts", "--help"], 0), (["alerts"], 2)])
def test_help_is_shown_where_it_is_asked_for_and_where_nothing_is(
    tmp_path: Path, hearken: Callable[..., tuple[int, str, str]], arguments: list[str], code: int
) -> None:
    found, out, err = hearken(arguments[0], tmp_path, *arguments[1:])
    assert (found, err) == (code, "")
    assert "Usage: hearken" in out


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt(), 130), (EOFError(), 1), (typer.Exit(3), 3)])
def test_commands_that_end_early_keep_their_exit_codes(
    tmp_path: Path,
    hearken: Callable[..., tuple[int, str, str]],
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    code: int,
) -> None:
    def end(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("pipeline.plant.init_plant", end)
    found, out, err = hearken("init", tmp_path, "new")
    assert (found, out.strip()) == (code, "")
    assert "Traceback" not in err

"""The README's map names every file once, and its commands exist."""

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def test_the_map_names_every_module_once() -> None:
    named = re.findall(r"^\| `([^`]+)` \|", README, flags=re.MULTILINE)
    modules = {
        path.relative_to(ROOT).as_posix()
        for folder in ("pipeline", "flows", "benchmarks")
        for path in (ROOT / folder).rglob("*.py")
        if "migrations" not in path.parts
    }
    assert modules <= set(named), sorted(modules - set(named))
    assert len(named) == len(set(named))
    for name in named:
        assert (ROOT / name).exists(), name


def test_the_commands_of_the_readme_exist() -> None:
    used = set(re.findall(r"^hearken ([a-z]+)", README, flags=re.MULTILINE))
    listed = subprocess.run(["hearken", "--help"], capture_output=True, text=True, check=True).stdout
    assert used
    for command in used:
        assert command in listed


def test_every_file_that_the_readme_links_is_there() -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / link).is_file(), link

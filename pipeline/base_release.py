"""Stage `base_release`: the networks of the release that training starts from; an empty list where it starts anew.

Who builds has the releases, below HEARKEN_HOME; a worker that only trains gets this output as any other input.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from pipeline.errors import ReleaseError, run_reporting_errors
from pipeline.params import NEURAL_DETECTORS, load_params
from pipeline.store import atomic_folder, folder_id, read_json, write_json

OUTPUT = Path("data/base_release")
FACTS = "base_release.json"  # the release, and whose weights stand here


def copy_networks(releases: Path, base_release: str | None, folder: Path) -> list[str]:
    """Fill an empty folder with the networks of a release, and say which they are.

    Args:
        releases: folder of all releases, by id.
        base_release: id of one; None: no weights.
        folder: where `<detector>/` and FACTS go.

    Raises:
        ReleaseError: no such release, or other bytes than its id says.
    """
    names: list[str] = []
    if base_release is not None:
        source = releases / base_release
        if not source.is_dir():
            got, expected = f"base_release {base_release}", "the id of a release"
            raise ReleaseError(f"params.yaml: got {got}, expected {expected}, in {releases}.")
        found = folder_id(source)
        if found != base_release:
            raise ReleaseError(f"release: got bytes with the id {found}, expected {base_release}, in {source}.")
        names = [name for name in read_json(source / "manifest.json")["members"] if name in NEURAL_DETECTORS]
        for name in names:
            shutil.copytree(source / "detectors" / name, folder / name)
    write_json(folder / FACTS, {"base_release": base_release, "networks": names})
    return names


def base_network(root: Path, base_release: str | None, name: str) -> Path | None:
    """The folder of a network that training starts from; None where there is no base release, or it has no such one.

    Raises:
        ReleaseError: the stage's output is missing, or of another release than params.yaml names.
    """
    if base_release is None:
        return None
    folder = root / OUTPUT
    found = read_json(folder / FACTS) if (folder / FACTS).is_file() else {"base_release": "none"}
    if found["base_release"] != base_release:
        got = found["base_release"]
        raise ReleaseError(
            f"base_release: got weights of {got}, expected {base_release} as in params.yaml, in {folder}."
        )
    return folder / name if name in found["networks"] else None


def releases_folder() -> Path:
    """Where this installation keeps its releases: below HEARKEN_HOME, or the checkout's `.hearken`."""
    return Path(os.environ.get("HEARKEN_HOME") or ".hearken").expanduser() / "releases"


def main() -> None:
    """Write data/base_release from `base_release` of params.yaml."""
    params = load_params()
    with atomic_folder(OUTPUT) as folder:
        names = copy_networks(releases_folder(), params.base_release, folder)
    if params.base_release is not None:
        print(f"progress base_release: {', '.join(names) or 'no network'} of {params.base_release}", flush=True)


if __name__ == "__main__":
    run_reporting_errors(main)

"""Private clones: where automation builds, so that a schedule never touches a person's files.

A workspace is a git clone that shares the DVC cache of its home. A named one is used again: it is reset to the wanted
commit, and its dvc.lock and data stay, so that a build with nothing changed finds nothing to do. One process at a time
holds a workspace (an advisory lock that dies with it); processes that a killed build left behind are ended first.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import os
import re
import shutil
import signal
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil
from ruamel.yaml import YAML

from flows.params_edit import with_values
from flows.repository import LOCK, run_git, snapshot_commit
from flows.settings import Settings, child_environment
from pipeline import store
from pipeline.errors import ParamsError, WorkspaceError
from pipeline.params import load_params

GROUP_FILE = "hearken.pgid"  # inside .git or .dvc/tmp: seen by neither git nor DVC


@dataclass(frozen=True, kw_only=True)
class Workspace:
    """A folder in which a build may work, and where it came from.

    `folder` holds dvc.yaml; `origin` is the git repository that tags and branches go to (None: a person's checkout,
    where nothing is committed); `commit` is what the build started from.
    """

    folder: Path
    commit: str
    origin: str | None
    settings: Settings

    @property
    def environment(self) -> dict[str, str]:
        """For processes that work in it."""
        return child_environment(self.settings)

    @property
    def group_file(self) -> Path:
        """Holds the process group of the stage that runs here now."""
        return self.folder / ".dvc" / "tmp" / GROUP_FILE


def create_workspace(
    origin: Path | str, revision: str, folder: Path | str, cache: Path | str, remote: str, *, keep_lock: bool = True
) -> str:
    """Make `folder` a clone of `origin` at `revision` that uses this cache and DVC remote; return the commit.

    Args:
        origin: a local repository (its objects are shared) or an address.
        revision: a branch of origin, a tag, or a commit.
        folder: taken over if it is such a clone already: its data stay, its tracked files are reset.
        cache: the DVC cache, shared between workspaces.
        remote: path or address of the DVC remote.
        keep_lock: in a folder used again keep its own dvc.lock, which says what its data were built from.

    Raises:
        WorkspaceError: origin or revision do not exist, or DVC is not set up there.
    """
    folder = Path(folder)
    if not (folder / ".git").is_dir():
        _clone(str(origin), folder)
    elif run_git(folder, "remote", "get-url", "origin") != str(origin):
        run_git(folder, "remote", "set-url", "origin", str(origin))
    commit = _find_commit(folder, revision)
    lock = folder / LOCK
    kept = lock.read_bytes() if keep_lock and lock.is_file() else None
    run_git(folder, "checkout", "--quiet", "--force", "--detach", commit)
    if kept is not None:
        with store.atomic_file(lock) as temporary:
            temporary.write_bytes(kept)
    _point_dvc_at(folder, Path(cache), remote)
    return commit


def _clone(origin: str, folder: Path) -> None:
    """Clone beside the place and move it there whole, so that a killed clone leaves nothing."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
    local = Path(origin).is_dir()
    try:
        run_git(
            folder.parent, "clone", "--quiet", "--no-checkout", *(["--shared"] if local else []), origin, str(temporary)
        )
        if folder.exists():
            shutil.rmtree(folder)
        temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _find_commit(folder: Path, revision: str) -> str:
    """The commit of a branch of origin, a tag, or a commit, fetched where it is not here yet."""
    run_git(folder, "fetch", "--quiet", "--prune", "--tags", "--force", "origin", "+refs/heads/*:refs/remotes/origin/*")
    for candidate in (f"refs/remotes/origin/{revision}", revision):
        with contextlib.suppress(WorkspaceError):
            return run_git(folder, "rev-parse", "--verify", "--quiet", f"{candidate}^{{commit}}")
    origin = run_git(folder, "remote", "get-url", "origin")
    raise WorkspaceError(f"revision: got {revision}, expected a branch, tag or commit of {origin}.")


def _point_dvc_at(folder: Path, cache: Path, remote: str) -> None:
    """Write .dvc/config.local: the cache and the address of the default remote."""
    config = folder / ".dvc" / "config"
    if not config.is_file():
        raise WorkspaceError(f"DVC: got no .dvc/config, expected a repository after `dvc init`, in {folder}.")
    default = [line.split("=", 1)[1].strip() for line in config.read_text().splitlines() if _is_default_remote(line)]
    name = default[0] if default else "plant"
    cache.mkdir(parents=True, exist_ok=True)
    text = f"[core]\n    remote = {name}\n[cache]\n    dir = {cache}\n['remote \"{name}\"']\n    url = {remote}\n"
    local = folder / ".dvc" / "config.local"
    if not local.is_file() or local.read_text() != text:
        store.write_text(local, text)
    exclude = folder / ".git" / "info" / "exclude"
    exclude.parent.mkdir(exist_ok=True)
    known = exclude.read_text() if exclude.is_file() else ""
    if "/.dvc/config.local" not in known:
        store.write_text(exclude, known + "\n/.dvc/config.local\n/.dvc/tmp\n")


def _is_default_remote(line: str) -> bool:
    name, _, value = line.partition("=")
    return name.strip() == "remote" and bool(value.strip())


@contextlib.contextmanager
def held(settings: Settings, folder: Path | str) -> Iterator[None]:
    """Hold a folder for one build: a second process gets a WorkspaceError instead of DVC's half-way lock failure."""
    folder = Path(folder).resolve()
    locks = settings.home / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    with (locks / f"{folder.name}-{hashlib.sha256(bytes(folder)).hexdigest()[:12]}.lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise WorkspaceError(f"workspace: got a build at work, expected none, in {folder}.") from None
        yield


@contextlib.contextmanager
def open_workspace(
    settings: Settings,
    *,
    clone: bool,
    name: str = "build",
    revision: str | None = None,
    params_overrides: Mapping[str, object] | None = None,
) -> Iterator[Workspace]:
    """A workspace, held until the block ends.

    Args:
        settings: the places.
        clone: False: the checkout itself; its files are built where they stand and nothing is committed.
        name: of the private clone, below `<home>/workspaces`.
        revision: what to clone; None: the checkout as it is, uncommitted edits included, when it is the repository,
            else the branch that is HEAD there.
        params_overrides: settings that replace those of params.yaml, by dotted name.

    Raises:
        WorkspaceError: see create_workspace; overrides without a clone; the workspace is at work.
        ParamsError: see override_params.
    """
    if not clone:
        if params_overrides:
            raise WorkspaceError("params_overrides: got some, expected none in a checkout; edit params.yaml or clone.")
        with held(settings, settings.checkout):
            head = run_git(settings.checkout, "rev-parse", "HEAD") if (settings.checkout / ".git").exists() else ""
            workspace = Workspace(folder=settings.checkout, commit=head, origin=None, settings=settings)
            end_leftovers(workspace)
            yield workspace
        return
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise WorkspaceError(f"name of the private clone: got {name!r}, expected letters, digits, dots and dashes.")
    folder = settings.workspaces / name
    origin = settings.repository
    with held(settings, folder):
        end_leftovers(Workspace(folder=folder, commit="", origin=origin, settings=settings))
        if revision is None:
            own = Path(origin).is_dir() and Path(origin).resolve() == settings.checkout
            revision = snapshot_commit(settings.checkout) if own else _default_branch(settings, origin)
        commit = create_workspace(origin, revision, folder, settings.cache, settings.remote)
        if params_overrides:
            override_params(folder / "params.yaml", params_overrides)
        yield Workspace(folder=folder, commit=commit, origin=origin, settings=settings)


def _default_branch(settings: Settings, origin: str) -> str:
    """The branch that is HEAD in a repository that is not the checkout."""
    settings.home.mkdir(parents=True, exist_ok=True)
    for line in run_git(settings.home, "ls-remote", "--symref", origin, "HEAD").splitlines():
        if line.startswith("ref: refs/heads/"):
            return line.split()[1].removeprefix("refs/heads/")
    raise WorkspaceError(
        f"HEARKEN_REPOSITORY: got no branch at HEAD, expected a repository with a commit, in {origin}."
    )


def override_params(path: Path | str, overrides: Mapping[str, object]) -> None:
    """Replace settings by dotted name (`split.changed_at`); comments stay, and the result is checked.

    Raises:
        ParamsError: an unknown name, or a value that params.yaml may not hold; the file is left as it was.
    """
    path = Path(path)
    text = path.read_text(encoding="utf-8")
    changed = with_values(text, overrides)
    if changed is None:
        changed = _with_new_keys(path.name, text, overrides)
    with tempfile.TemporaryDirectory() as scratch:
        checked = Path(scratch) / path.name
        checked.write_text(changed, encoding="utf-8")
        load_params(checked)
    if changed != text:
        store.write_text(path, changed)


def _with_new_keys(name: str, text: str, overrides: Mapping[str, object]) -> str:
    """The text with other values, some of them at keys that it does not have yet; its lines may be broken anew."""
    editor = YAML()
    editor.width = 10_000
    values = editor.load(text)
    for dotted, value in overrides.items():
        *sections, last = dotted.split(".")
        place = values
        for section in sections:
            if place.get(section) is None:  # left out, or null: its defaults
                place[section] = {}
            place = place[section]
            if not isinstance(place, dict):
                raise ParamsError(f"{name}, {dotted}: got a value at {section}, expected a section.")
        place[last] = value
    written = io.StringIO()
    editor.dump(values, written)
    return written.getvalue()


def end_leftovers(workspace: Workspace) -> list[int]:
    """Kill what a killed build left running in the workspace; return the process ids.

    The flow that is killed with -9 leaves its stage alive, in its own group. A group id may since belong to somebody
    else, so only processes of the group that work inside the folder are ended.
    """
    try:
        group = int(workspace.group_file.read_text())
    except (OSError, ValueError):
        return []
    ended = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            inside = Path(process.cwd()).is_relative_to(workspace.folder.resolve())
            if inside and process.pid != os.getpid() and os.getpgid(process.pid) == group:
                process.send_signal(signal.SIGKILL)
                ended.append(process.pid)
    workspace.group_file.unlink(missing_ok=True)
    return ended

"""What we ask of git: snapshots of a checkout, commits and branches of builds, tags of releases."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import WorkspaceError

IDENTITY = ("-c", "user.name=Hearken", "-c", "user.email=hearken@localhost")
LOCK = "dvc.lock"


def run_git(folder: Path | str, *arguments: str) -> str:
    """Run git and return what it printed, without the last line break.

    Raises:
        WorkspaceError: git is not installed, or failed; with what it said.
    """
    # the caller's GIT_DIR and GIT_INDEX_FILE (we may run inside a hook) would point every command at another repository
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment["GIT_TERMINAL_PROMPT"] = "0"
    command = ["git", *IDENTITY, *arguments]
    try:
        result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise WorkspaceError(f"git: got no such program or folder, expected git and {folder}.") from None
    if result.returncode:
        said = " ".join((result.stderr or result.stdout).split())
        raise WorkspaceError(f"git {' '.join(arguments)}: got '{said}', expected success, in {folder}.")
    return result.stdout.removesuffix("\n")


def snapshot_commit(checkout: Path | str) -> str:
    """HEAD, or with uncommitted edits of tracked files a commit that holds them, without touching branch or index.

    Raises:
        WorkspaceError: no git repository, or no commit in it.
    """
    try:
        head = run_git(checkout, "rev-parse", "--verify", "HEAD^{commit}")
    except WorkspaceError:
        raise WorkspaceError(
            f"checkout: got no git repository with a commit, expected one to clone, in {checkout} "
            "(`git init && git add . && git commit`)."
        ) from None
    stash = run_git(checkout, "stash", "create")
    if not stash:
        return head
    # a plain child of HEAD: a stash is a merge with the index, which nobody wants in the history of a release
    message = "Uncommitted edits of a checkout"
    return run_git(checkout, "commit-tree", f"{stash}^{{tree}}", "-p", head, "-m", message)


def untracked_files(checkout: Path | str) -> list[str]:
    """Files that git neither tracks nor ignores: a private clone does not get them."""
    return [name for name in run_git(checkout, "ls-files", "-z", "--others", "--exclude-standard").split("\0") if name]


def commit_build(folder: Path, branch: str, message: str, *, push: bool = False) -> str:
    """Commit dvc.lock and params.yaml of a private clone on the branch of its build, and push it if asked.

    Raises:
        WorkspaceError: git failed, or the push was refused.
    """
    files = [name for name in (LOCK, "params.yaml") if (folder / name).is_file()]
    run_git(folder, "checkout", "--quiet", "-B", branch)
    run_git(folder, "add", "--force", "--", *files)
    run_git(folder, "commit", "--quiet", "--allow-empty", "--no-verify", "-m", message)
    if push:
        run_git(folder, "push", "--quiet", "--force", "origin", f"{branch}:refs/heads/{branch}")
    return run_git(folder, "rev-parse", "HEAD")


def delete_branch(folder: Path, branch: str) -> None:
    """Delete a pushed branch of a build; a repository without it is fine."""
    with contextlib.suppress(WorkspaceError):
        run_git(folder, "push", "--quiet", "origin", "--delete", f"refs/heads/{branch}")


def next_release_number(folder: Path, repository: str, taken: Sequence[int] = ()) -> int:
    """One more than the highest release/vN of a repository (`.` or an address) and than the numbers taken already."""
    numbers = [0, *taken]
    if repository != "." or (folder / ".git").exists():
        for line in run_git(folder, "ls-remote", "--tags", "--refs", repository, "release/v*").splitlines():
            suffix = line.rsplit("release/v", 1)[-1]
            if suffix.isdigit():
                numbers.append(int(suffix))
    return max(numbers) + 1


def tag_release(folder: Path, number: int, message: str, *, attempts: int = 20) -> tuple[int, str | None]:
    """Tag HEAD as release/v<number> and push the tag; if another build took the number, take the next.

    Returns:
        The number, and None or why origin refused the tag; a refused tag is removed here too, so that no local tag
        says what the repository does not.
    """
    for candidate in range(number, number + attempts):
        tag = f"release/v{candidate}"
        run_git(folder, "tag", "--force", "--annotate", tag, "-m", message)
        try:
            run_git(folder, "push", "--quiet", "origin", f"refs/tags/{tag}")
        except WorkspaceError as error:
            run_git(folder, "tag", "--delete", tag)
            if "already exists" not in str(error):
                return number, f"the tag {tag} was refused and removed: {error}"
            continue
        return candidate, None
    return number, f"no free number was found for a tag from release/v{number} on"

"""Where a source's files lie: a folder, a file or an object store, listed and opened through pyarrow's file systems."""

from __future__ import annotations

import io
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast
from urllib.parse import unquote, urlsplit

import pyarrow as pa
from pyarrow import fs

from pipeline.errors import ContractError
from pipeline.store import atomic_file

# what a data set holds beside its spectra; never a table of spectra
NOT_SPECTRA = {
    "maintenance",
    "maintenance_added",
    "fleet",
    "truth",
    "failures",
    "feedback",
    "corrections",
    "quarantine_releases",
}
READ_AHEAD = 1 << 20
MOST_BESIDE_BYTES = 256 << 20  # of a log that lies beside the spectra


@dataclass(frozen=True)
class SourceFile:
    """A file of a source, known by its name relative to the source."""

    name: str
    size: int
    below: str  # the name relative to the folder that holds the spectra: what patterns of paths see
    modified_ns: int = 0  # when it was last written, where that is known


@dataclass(frozen=True)
class Place:
    """A folder or a file, here or in an object store; its label holds no credentials."""

    label: str
    files: fs.FileSystem
    root: str
    is_file: bool
    local: Path | None  # None: in an object store

    def open(self, name: str) -> IO[bytes]:
        """A file as a stream that reads ahead.

        Raises:
            ContractError: it cannot be opened.
        """
        return cast(IO[bytes], io.BufferedReader(cast(io.RawIOBase, self.open_arrow(name)), READ_AHEAD))

    def open_arrow(self, name: str) -> pa.NativeFile:
        """A file as pyarrow's own.

        Raises:
            ContractError: it cannot be opened.
        """
        try:
            return self.files.open_input_file(self.path_of(name))
        except (OSError, pa.ArrowException, ValueError) as error:
            raise self.unreadable(error, name) from None

    def path_of(self, name: str) -> str:
        """A file's path in its file system."""
        return self.root if self.is_file else f"{self.root}/{name}"

    def beside(self, *names: str) -> tuple[str, bytes] | None:
        """The first of these files that lies in the folder, as its name and bytes; None where none does."""
        if self.is_file:
            return None
        try:
            for info in self.files.get_file_info([self.path_of(name) for name in names]):
                if info.type == fs.FileType.File:
                    if info.size > MOST_BESIDE_BYTES:
                        expected = f"at most {MOST_BESIDE_BYTES} bytes"
                        raise ContractError.of("size", got=info.size, expected=expected, where=info.base_name)
                    with self.files.open_input_file(info.path) as file:
                        return info.base_name, file.read()
        except (OSError, pa.ArrowException, ValueError) as error:
            raise self.unreadable(error) from None
        return None

    def write(self, name: str, data: bytes) -> bool:
        """Put a file into the folder, whole or not at all; whether it was not there with these bytes already.

        Raises:
            ContractError: this is no folder, or it cannot be written to.
        """
        if self.is_file:
            raise ContractError.of("data set", got="a file", expected="a folder to write to", where=self.label)
        present = self.beside(name)
        if present is not None and present[1] == data:
            return False
        try:
            if self.local is not None:
                path = self.local / name
                mode = path.stat().st_mode if present is not None else None
                with atomic_file(path) as temporary:
                    temporary.write_bytes(data)
                if mode is not None:  # people who may write a file may go on writing it
                    path.chmod(stat.S_IMODE(mode))
            else:  # an object store shows an object once it is whole
                with self.files.open_output_stream(self.path_of(name)) as stream:
                    stream.write(data)
        except (OSError, pa.ArrowException, ValueError) as error:
            got = f"nothing that can be written ({without_credentials(first_line(error))})"
            raise ContractError.of(name, got=got, expected="a folder to write to", where=self.where(name)) from None
        return True

    def where(self, name: str) -> str:
        """A file's place for people."""
        return self.label if self.is_file else f"{self.label.rstrip('/')}/{name}"

    def unreadable(self, error: BaseException, name: str = "") -> ContractError:
        """What a person is told where the file system fails."""
        got = f"nothing that can be read ({without_credentials(first_line(error))})"
        return ContractError.of("source", got=got, expected="a file or folder", where=self.where(name))


def first_line(error: BaseException) -> str:
    """The first line of an error, at most 300 characters."""
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


def without_credentials(text: str) -> str:
    """A text in which no URI shows a user, a password or a query.

    >>> without_credentials("no s3://key:secret@bucket/raw?endpoint_override=x there")
    'no s3://bucket/raw there'
    """
    text = re.sub(r"(?<=://)[^/\s?'\"]*@", "", text)
    return re.sub(r"(://[^\s?'\"]*)\?[^\s'\"]*", r"\1", text)


def natural_order(name: str) -> list[tuple[int, int | str]]:
    """A key that sorts names as people do.

    >>> sorted(["amp_10", "amp_9"], key=natural_order)
    ['amp_9', 'amp_10']
    """
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in re.split(r"(\d+)", name) if part]


def place_of(source: str | Path) -> Place:
    """The place that a path or a URI (s3://, gs://, abfs://, hdfs://, file://) names.

    Raises:
        ContractError: there is nothing, it cannot be reached, or the URI is of no known kind.
    """
    text = str(source)
    if "://" not in text:
        return _local(Path(text), text)
    parts = urlsplit(text)
    if parts.scheme == "file":
        return _local(Path(unquote(parts.path)), without_credentials(text))
    label = without_credentials(text)
    secrets = [part for part in (parts.username, parts.password, parts.query) if part]
    try:
        files, root = fs.FileSystem.from_uri(text)
        if not root:
            raise ValueError("no bucket is named")
        kind = files.get_file_info(root).type
    except (OSError, pa.ArrowException, ValueError, TypeError, KeyError) as error:
        message = without_credentials(first_line(error).replace(text, label))
        for secret in secrets:
            message = message.replace(secret, "***").replace(unquote(secret), "***")
        got = f"nothing that can be reached ({message})"
        raise ContractError.of("source", got=got, expected="a place in an object store", where=label) from None
    if kind == fs.FileType.NotFound:
        raise ContractError.of("source", got="no such file or folder", expected="a source", where=label)
    return Place(label, files, root.rstrip("/"), kind == fs.FileType.File, None)


def _local(path: Path, label: str) -> Place:
    if not path.exists():
        raise ContractError.of("spectra", got="no such file or folder", expected="a source", where=label)
    root = path.resolve()
    return Place(label, fs.LocalFileSystem(), root.as_posix(), root.is_file(), root)


def list_files(place: Place) -> tuple[list[SourceFile], dict[str, str]]:
    """Every file that may hold spectra, in natural order; and what was refused, with the reason.

    Hidden files, and the logs and descriptions of a data set, are passed over. Where there is a folder `spectra`, only
    what lies in it counts.

    Raises:
        ContractError: the place cannot be listed.
    """
    if place.is_file:
        name = place.root.rsplit("/", 1)[-1]
        info = place.files.get_file_info(place.root)
        return [SourceFile(name, int(info.size or 0), name, int(info.mtime_ns or 0))], {}
    refused: dict[str, str] = {}
    try:
        spectra = place.files.get_file_info(place.path_of("spectra")).type == fs.FileType.Directory
        base = "spectra/" if spectra else ""
        if place.local is not None:
            listed = list(_walk(place.local, place.local / base, refused))
        else:
            selector = fs.FileSelector(place.path_of(base.rstrip("/")).rstrip("/"), recursive=True)
            infos = [info for info in place.files.get_file_info(selector) if info.type == fs.FileType.File]
            listed = [
                (info.path[len(place.root) :].lstrip("/"), int(info.size or 0), int(info.mtime_ns or 0))
                for info in infos
            ]
    except (OSError, pa.ArrowException, ValueError) as error:
        raise place.unreadable(error) from None
    files = [SourceFile(name, size, name.removeprefix(base), written) for name, size, written in listed]
    kept = [file for file in files if _may_hold_spectra(file.below)]
    return sorted(kept, key=lambda file: natural_order(file.name)), refused


def _may_hold_spectra(below: str) -> bool:
    parts = below.split("/")
    return not any(part.startswith(".") for part in parts) and parts[-1].split(".")[0] not in NOT_SPECTRA


def _walk(root: Path, base: Path, refused: dict[str, str]) -> Iterator[tuple[str, int, int]]:
    """Names, sizes and times of writing below a folder; links that lead out of it are refused."""
    for folder, folders, names in os.walk(base):
        for name in folders + names:
            path = Path(folder) / name
            relative = path.relative_to(root).as_posix()
            if not path.is_symlink():
                inside = True
            else:
                inside = path.resolve().is_relative_to(root)
                if not inside:
                    refused[_printable(relative)] = "file: got a link that leaves the folder, expected a plain file."
            if inside and path.is_file():
                if relative != _printable(relative):
                    refused[_printable(relative)] = "name: got bytes that are not UTF-8, expected a name in UTF-8."
                else:
                    status = path.stat()
                    yield relative, status.st_size, status.st_mtime_ns


def _printable(name: str) -> str:
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")

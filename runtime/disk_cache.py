"""Keep what took long to make between builds and runs, by a digest of all that it was made from.

The folder is ``$DIFFC_CACHE``, by default ``diffc`` in the user's folder for caches. Whoever cannot read or write it
goes on without it, and says so. Entries appear whole or not at all, so processes at the same time share it; one that
was damaged is dropped. The least recently used entries go when the sum of all passes ``$DIFFC_CACHE_BYTES``.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path

from diffc.runtime.errors import DiffcError, DiffcWarning

LIMIT = 2 << 30
"""Bytes that the cache may take by default."""

DIGEST = 64
"""Characters of the SHA-256 that stands before an entry's content."""

SUFFIX = ".entry"


@dataclass(frozen=True)
class Cache:
    """Hold entries of bytes by their keys, which are hexadecimal digests."""

    folder: Path
    limit: int = LIMIT

    @staticmethod
    def default() -> Cache:
        """Give the cache that the environment asks for. Raises `DiffcError` where its size is no number."""
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        limit = os.environ.get("DIFFC_CACHE_BYTES") or str(LIMIT)
        if not limit.isdecimal():
            raise DiffcError(f"DIFFC_CACHE_BYTES is {limit!r}", fix="give a number of bytes; 0 keeps nothing")
        return Cache(Path(os.environ.get("DIFFC_CACHE") or home / "diffc"), int(limit))

    def get(self, key: str) -> bytes | None:
        """Look up an entry; None where there is none, or none that is whole."""
        path = self._path(key)
        try:
            data = path.read_bytes()
            if data[:DIGEST] == _digest(data[DIGEST:]):
                os.utime(path)
                return data[DIGEST:]
            path.unlink()
        except FileNotFoundError:
            return None
        except OSError as error:
            self._warn(error)
        return None

    def put(self, key: str, data: bytes) -> None:
        """Keep an entry, and make room for it."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self.folder, prefix=".", suffix=".partial", delete=False) as file:
                try:
                    file.write(_digest(data) + data)
                    file.close()
                    Path(file.name).rename(self._path(key))
                except BaseException:
                    Path(file.name).unlink(missing_ok=True)
                    raise
            self._make_room()
        except OSError as error:
            self._warn(error)

    def entries(self) -> list[tuple[Path, os.stat_result]]:
        """List the entries, the least recently used first; none where the folder cannot be read."""
        found = []
        try:
            for path in self.folder.glob(f"*{SUFFIX}"):
                found.append((path, path.stat()))
        except OSError as error:
            self._warn(error)
        return sorted(found, key=lambda entry: entry[1].st_mtime)

    def clear(self) -> int:
        """Remove every entry and give their bytes. Raises `DiffcError` where one cannot be removed."""
        removed = 0
        for path, state in self.entries():
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                what = f"the cache cannot be cleared: {error.strerror}"
                raise DiffcError(what, where=str(path), fix="give yourself the right to write there") from error
            removed += state.st_size
        return removed

    def _make_room(self) -> None:
        entries = self.entries()
        size = sum(state.st_size for _, state in entries)
        for path, state in entries:
            if size <= self.limit:
                break
            path.unlink(missing_ok=True)
            size -= state.st_size

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}{SUFFIX}"

    def _warn(self, error: OSError) -> None:
        what = f"the cache {self.folder} is not used: {error.strerror or error}"
        warnings.warn(what, DiffcWarning, stacklevel=3)


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).hexdigest().encode()

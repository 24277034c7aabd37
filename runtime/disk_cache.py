"""Cache expensive results of builds and runs on disk, by a digest of all their inputs.

The folder is ``$DIFFC_CACHE``, by default ``diffc`` in the user's folder for caches. Where it cannot be read or
written, a warning is issued and nothing is cached. Entries are renamed into place when complete, so processes can share
the folder; damaged entries are removed, and the least recently used where all together exceed ``$DIFFC_CACHE_BYTES``.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
import warnings
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from diffc.runtime.errors import DiffcError, DiffcWarning

LIMIT = 2 << 30
"""Bytes that the cache may take by default."""

DIGEST = 64
"""Characters of the SHA-256 that stands before an entry's content."""

SUFFIX, PARTIAL = ".entry", ".partial"

ABANDONED = 600
"""Seconds after which no process writes a partial entry any more."""


@dataclass(frozen=True)
class Cache:
    """Hold entries of bytes by their keys, which are hexadecimal digests."""

    folder: Path
    limit: int = LIMIT

    @staticmethod
    def default() -> Cache:
        """Return the cache that the environment describes. Raises `DiffcError` where its size is not a number."""
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        limit = os.environ.get("DIFFC_CACHE_BYTES") or str(LIMIT)
        if not limit.isdecimal():
            raise DiffcError(f"DIFFC_CACHE_BYTES is {limit!r}", fix="give a number of bytes; 0 keeps nothing")
        return Cache(Path(os.environ.get("DIFFC_CACHE") or home / "diffc"), int(limit))

    def get(self, key: str) -> bytes | None:
        """Return an entry; None where there is none, or a damaged one."""
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
        """Store an entry, and remove old ones where the cache exceeds its limit."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self.folder, prefix=".", suffix=PARTIAL, delete=False) as file:
                try:
                    file.write(_digest(data) + data)
                    file.close()
                    Path(file.name).rename(self._path(key))
                except BaseException:
                    Path(file.name).unlink(missing_ok=True)
                    raise
            self._evict()
        except OSError as error:
            self._warn(error)

    def entries(self) -> list[tuple[Path, os.stat_result]]:
        """List the entries, the least recently used first; none where the folder cannot be read."""
        entries = []
        try:
            for path in self.folder.glob(f"*{SUFFIX}"):
                entries.append((path, path.stat()))
        except OSError as error:
            self._warn(error)
        return sorted(entries, key=lambda entry: entry[1].st_mtime)

    def clear(self) -> int:
        """Remove every entry and return their bytes. Raises `DiffcError` where one cannot be removed."""
        removed = 0
        for path, state in self.entries():
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                what = f"the cache cannot be cleared: {error.strerror}"
                raise DiffcError(what, where=str(path), fix="give yourself the right to write there") from error
            removed += state.st_size
        return removed

    def _evict(self) -> None:
        for path in self.folder.glob(f".*{PARTIAL}"):  # of processes that were killed
            with suppress(FileNotFoundError):  # it has just become an entry
                if time.time() - path.stat().st_mtime > ABANDONED:
                    path.unlink()
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

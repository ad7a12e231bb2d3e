"""A list in a file: entries are found by their number, and no two have one id, however many there are.

Nothing of it is held in memory. One process writes it, then any number of them read it.

Source: SQLite, as it comes with Python.
"""

import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import quote
from weakref import finalize

SCHEMA = """
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
CREATE TABLE entries (number INTEGER PRIMARY KEY, id UNIQUE, place TEXT, entry TEXT);
CREATE TABLE left_out (name TEXT, reason TEXT);
BEGIN;
"""


class Entries:
    """Entries in order, and what was left out.

    Args:
        path: A new file, from which other processes may read; without one, it is a temporary one of this process.
    """

    def __init__(self, path: str | os.PathLike = ""):
        self._path, self._process, self._count = os.fspath(path), os.getpid(), 0
        with self._writing():
            self._file = self._connection(self._path)
            self._file.executescript(SCHEMA)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> tuple[str, str]:
        """Id and entry."""
        if not 0 <= number < len(self):
            raise IndexError(f"there are {len(self)} entries, got {number}.")
        return self._reader().execute("SELECT id, entry FROM entries WHERE number = ?", (number,)).fetchone()

    def __iter__(self) -> Iterator[str]:
        """The entries alone."""
        for (entry,) in self._reader().execute("SELECT entry FROM entries ORDER BY number"):
            yield entry

    def __contains__(self, name: object) -> bool:
        """Whether an id is taken."""
        return self._reader().execute("SELECT 1 FROM entries WHERE id = ?", (name,)).fetchone() is not None

    def add(self, name: str | bytes, place: str = "", entry: str = "") -> bool:
        """Add an entry; False if its id is taken, in which case its place is among what was left out.

        Raises:
            OSError: If the disk is full, here and in all that writes.
        """
        values = (self._count, name, json.dumps(place), entry)
        with self._writing():
            is_new = self._file.execute("INSERT OR IGNORE INTO entries VALUES (?, ?, ?, ?)", values).rowcount == 1
        if is_new:
            self._count += 1
            return True
        where, other = self._file.execute("SELECT place, entry FROM entries WHERE id = ?", (name,)).fetchone()
        before = json.loads(where)
        same, taken = f"it says the same as {before}", f"its id {name!r} is that of {before}; give it an id of its own"
        self.leave_out(place, same if other == entry else taken)
        return False

    def leave_out(self, name: str, reason: str) -> None:
        """Name something that is no entry."""
        with self._writing():
            self._file.execute("INSERT INTO left_out VALUES (?, ?)", (json.dumps(name), json.dumps(reason)))

    @property
    def left_out(self) -> list[tuple[str, str]]:
        """Name or place, and reason, of everything else, in order."""
        found = self._reader().execute("SELECT name, reason FROM left_out ORDER BY rowid")
        return [(json.loads(name), json.loads(reason)) for name, reason in found]

    def finish(self) -> None:
        """Let other processes read it, and nobody write to it."""
        with self._writing():
            self._file.execute("COMMIT")

    def __getstate__(self) -> dict:
        assert self._path, "a temporary list cannot be read by other processes"
        return vars(self) | {"_file": None, "_process": None}

    def _reader(self) -> sqlite3.Connection:
        if self._process != os.getpid():  # no connection outlives a fork
            self._file = self._connection(f"file:{quote(self._path)}?immutable=1")
            self._process = os.getpid()
        return self._file

    def _connection(self, name: str) -> sqlite3.Connection:
        found = sqlite3.connect(name, isolation_level=None, check_same_thread=False, uri=name.startswith("file:"))
        finalize(self, found.close)
        return found

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            raise OSError(
                f"the list of recordings cannot be written to {self._path or 'a temporary file'} ({error}); make "
                "room there, or choose another folder for temporary files by TMPDIR."
            ) from error

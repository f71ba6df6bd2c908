"""The watched inbox: a file dropped into `<inbox>/<source>/` is taken once it is whole.

Whole means: not hidden, not under a temporary name, and unchanged for `settle_s` (a file renamed into place with
an old time stamp is whole at once). A whole file is first renamed into `.taking`, where nobody finds it by name; it
ends in `.done/<source>/<digest>-<name>`, in `.refused/<source>/` beside a `.reason.txt`, or back in its place where the
fault is not its own. What a crash leaves in `.taking` is taken at the next start. Only regular files are read: a link,
a pipe or a device is refused unread.

A writer may pause for longer than `settle_s` and go on: it still holds the file, wherever that was moved. So what is
written to in `.done` or `.refused` goes back to its place, to be taken once more when it is whole; rows that came in
the first time are merged as duplicates. That it was written to shows without a memory: a write sets the times of
content and of inode alike, a move only the second.
"""

from __future__ import annotations

import os
import stat
import time
import uuid
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from plumbline.data_contracts.errors import PlumblineError, UsageError

TAKING, DONE, REFUSED = ".taking", ".done", ".refused"
_UNFINISHED = (".part", ".partial", ".tmp", ".crdownload", ".filepart", "~")
_REASON = ".reason.txt"
_LONGEST_NAME = 180  # bytes kept of a file's name beside a digest

Take = Callable[[str, Path], str]
"""`take(source, path)` ingests a file and returns its digest. `UsageError`: the file is at fault."""


@dataclass(frozen=True, slots=True)
class Handled:
    """The outcome of one file: "done", "refused" or "kept" (to be tried again), and why."""

    name: str
    source: str
    outcome: str
    detail: str


@dataclass(slots=True)
class Inbox:
    """One inbox folder. `scan` handles what is whole now."""

    folder: Path
    sources: Collection[str]
    take: Take
    settle_s: float
    clock: Callable[[], float] = time.monotonic
    retry_s: float = 10.0  # before a file that was put back is tried again
    _not_before: dict[Path, float] = field(default_factory=dict)
    _seen: dict[Path, tuple[tuple[int, int, int], float]] = field(default_factory=dict)

    def prepare(self) -> None:
        """Make the folders that are missing. Raises `UsageError` if the inbox is a link or a file."""
        if self.folder.is_symlink() or (self.folder.exists() and not self.folder.is_dir()):
            raise UsageError(f"{self.folder}: expected a folder of its own, found a link or a file. Set intake.inbox.")
        for name in self.sources:
            for folder in (self.folder, self.folder / DONE, self.folder / REFUSED):
                (folder / name).mkdir(parents=True, exist_ok=True)
            (self.folder / TAKING / name).mkdir(parents=True, exist_ok=True, mode=0o700)

    def scan(self) -> list[Handled]:
        """Take every whole file, what a crash left first. Files that still change are left for the next scan."""
        self.prepare()
        left = [(path, path.parent.name) for path in _files(self.folder / TAKING, deep=True)]
        handled = [self._ingest(path, path.name.partition("-")[2], source) for path, source in left]
        handled += [self._take_back(path) for path in self._written_since()]
        present = list(self._candidates())
        self._seen = {path: seen for path, seen in self._seen.items() if path in {item for item, _ in present}}
        return handled + [self._handle(path, source) for path, source in present if self._whole(path)]

    def settling(self) -> bool:
        """True if files were seen that still change, so that another scan is due soon."""
        return bool(self._seen)

    def _written_since(self) -> list[Path]:
        """Files that were written to after they had been moved."""
        folders = [self.folder / ended / source for ended in (DONE, REFUSED) for source in self.sources]
        return [path for folder in folders for path in _files(folder) if _is_written(path)]

    def _take_back(self, path: Path) -> Handled:
        name = path.name.partition("-")[2] if path.parent.parent.name == DONE else path.name
        _reason_of(path).unlink(missing_ok=True)
        why = "it was written to after it had been taken; it is taken again once it is whole"
        return self._put_back(path, name, path.parent.name, why)

    def _candidates(self) -> Iterator[tuple[Path, str]]:
        for path in _files(self.folder):
            yield path, ""
        for source in sorted(item.name for item in os.scandir(self.folder) if item.is_dir(follow_symlinks=False)):
            if not source.startswith("."):
                for path in _files(self.folder / source):
                    yield path, source

    def _whole(self, path: Path) -> bool:
        try:
            status = path.lstat()
        except FileNotFoundError:
            return False
        if not stat.S_ISREG(status.st_mode):
            return True  # to be refused
        now = self.clock()
        if now < self._not_before.get(path, now):
            return False
        self._not_before.pop(path, None)
        state = (status.st_size, status.st_mtime_ns, status.st_ino)
        known, since = self._seen.get(path, (None, now))
        if time.time() - status.st_mtime >= self.settle_s or (known == state and now - since >= self.settle_s):
            self._seen.pop(path, None)
            return True
        self._seen[path] = (state, since if known == state else now)
        return False

    def _handle(self, path: Path, source: str) -> Handled:
        if source not in self.sources:
            where = "a file beside the folders" if not source else f"a folder {source!r}"
            expected = ", ".join(f"{self.folder.name}/{name}/" for name in self.sources)
            return self._refuse(path, path.name, source, f"expected a file in {expected}; found {where}.")
        taking = self.folder / TAKING / source / f"{uuid.uuid4().hex[:8]}-{_shortened(path.name)}"
        try:
            path.rename(taking)
        except FileNotFoundError:
            return Handled(path.name, source, "kept", "it went away")
        return self._ingest(taking, path.name, source)

    def _ingest(self, path: Path, name: str, source: str) -> Handled:
        """Ingest a file that only we have by name."""
        before = path.lstat()
        if not stat.S_ISREG(before.st_mode):
            return self._refuse(path, name, source, "expected a regular file, found a link, a pipe or a device.")
        try:
            digest = self.take(source, path)
        except UsageError as error:
            return self._refuse(path, name, source, str(error).replace(str(path), name))
        except (PlumblineError, OSError) as error:
            return self._put_back(path, name, source, f"not now: {error}")
        after = path.lstat()
        if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
            return self._put_back(path, name, source, "it was still written to; it is taken again once it is whole")
        _move(path, _free(self.folder / DONE / source, f"{digest[:16]}-{_shortened(name)}"))
        return Handled(name, source, "done", digest)

    def _put_back(self, path: Path, name: str, source: str, why: str) -> Handled:
        back = _free(self.folder / source, name)
        self._not_before[back] = self.clock() + self.retry_s
        path.rename(back)
        return Handled(name, source, "kept", why)

    def _refuse(self, path: Path, name: str, source: str, why: str) -> Handled:
        target = _free(self.folder / REFUSED / (source if source in self.sources else ""), _shortened(name))
        _move(path, target)
        _reason_of(target).write_text(f"{why}\n", encoding="utf-8", errors="backslashreplace")
        return Handled(name, source, "refused", why)


def _files(folder: Path, *, deep: bool = False) -> list[Path]:
    """Entries that are no folder, hidden or unfinished, by name; links are entries like others."""
    found = []
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda item: item.name):
            if entry.is_dir(follow_symlinks=False):
                found += _files(Path(entry.path)) if deep else []
            elif not entry.name.startswith(".") and not entry.name.endswith(_UNFINISHED):
                found.append(Path(entry.path))
    return found


def _move(path: Path, target: Path) -> None:
    """Rename, and take it from group and others, whatever mode its sender gave it.

    The inode's time then shows the move, which a rename alone does not on every file system.
    """
    path.rename(target)
    mode = target.lstat().st_mode
    if stat.S_ISREG(mode):
        with suppress(PermissionError):  # another user's: nobody but its owner may, and the folder lets nobody in
            target.chmod(stat.S_IMODE(mode) & stat.S_IRWXU)


def _is_written(path: Path) -> bool:
    """True if a file's last change was one of content."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return False
    regular = stat.S_ISREG(status.st_mode) and not path.name.endswith(_REASON)
    return regular and status.st_mtime_ns == status.st_ctime_ns


def _reason_of(path: Path) -> Path:
    return path.with_name(f"{path.name}{_REASON}")


def _shortened(name: str) -> str:
    data = os.fsencode(name)
    return name if len(data) <= _LONGEST_NAME else os.fsdecode(data[-_LONGEST_NAME:]).lstrip(".")


def _free(folder: Path, name: str) -> Path:
    """A path in the folder that nothing has."""
    path, number = folder / name, 1
    while os.path.lexists(path):
        path, number = folder / f"{number}-{name}", number + 1
    return path

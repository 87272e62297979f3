"""One writer at a time: a file that names its owner, who renews it while it lives.

Locks of the operating system end with their process, but do not work on every network file system and name nobody.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from jax_mlm.errors import UserError, described
from jax_mlm.files import make_folder
from jax_mlm.signals import Stopped, number_of

NAME = ".lock"
"""The lock inside a run directory; that of another folder stands beside it, under the folder's name."""
INTERVAL = 5.0
"""Seconds between two heartbeats: the file's time, which is the clock of the file system, the same for all hosts."""
STALE = 12 * INTERVAL
"""Seconds without one after which an owner on another host counts as dead."""
POLL = 0.5
UNKNOWN = "?"
"""The start of a process that may not be looked at."""

Check = Callable[[], None]
"""Raises UserError if the lock has been lost: the process was suspended for so long that another one took over."""


@dataclass(frozen=True)
class Owner:
    """Who holds a lock."""

    host: str
    pid: int
    since: str
    started: str
    """When the process started, since its number may be used again."""
    machine: str
    """Whose process numbers these are: a container has its own, under a host name that others may have too."""
    token: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} (since {self.since})"


def beside(folder: Path) -> Path:
    """Return the lock of a folder that appears, or is replaced, as a whole."""
    folder = folder.absolute()
    return folder.parent.resolve() / f".{folder.name}{NAME}"


def is_lock(path: Path) -> bool:
    """Return whether this is the lock in a run directory, or what a kill left of one."""
    return path.name.startswith(NAME)


@contextmanager
def locked(path: Path, option: str, what: Path, patient: str = "") -> Iterator[Check]:
    """Hold a lock; it is removed in the end, with the folders that were made for it if they are empty.

    Args:
        option: names the folder in an error.
        what: is written while the lock is held.
        patient: what an owner is doing with it, for whom this process then waits instead of giving up.

    Raises:
        UserError: another process, or another thread of this one, holds it; or the folder cannot be written.
    """
    made = [folder for folder in (path.parent, *path.parent.parents) if not folder.exists()]
    make_folder(path.parent, option)
    try:
        owner = _acquire(path, option, what, patient)
        _sweep(path, path.stat().st_mtime)
        with _beating(path, owner, what) as check:
            try:
                yield check
            finally:
                if _owner(path)[0] == owner:
                    path.unlink(missing_ok=True)
    finally:
        for folder in made:
            with suppress(OSError):  # it is in use
                folder.rmdir()


@contextmanager
def target_locked(folder: Path, option: str) -> Iterator[None]:
    """Hold the lock of a folder that appears, or is replaced, as a whole; a request to stop leaves it as it was."""
    try:
        with locked(beside(folder), option, folder):
            yield
    except KeyboardInterrupt as stop:
        raise Stopped(number_of(stop), f"{folder} was not {'changed' if folder.exists() else 'written'}") from None


def refuse_if_locked(path: Path, what: Path) -> None:
    """Raise UserError if somebody holds this lock."""
    owner, beat = _owner(path)
    if owner is not None and not _dead(owner, time.time() - beat):
        raise _in_use(what, owner)


def _in_use(what: Path, owner: Owner) -> UserError:
    return UserError(f"{what} is being written by {owner}: wait until it has ended, or choose another folder")


def _acquire(path: Path, option: str, what: Path, patient: str) -> Owner:
    """Return this process as the owner, once the lock is its own."""
    since = time.strftime("%Y-%m-%d %H:%M:%S %Z")
    mine = Owner(socket.gethostname(), os.getpid(), since, _started(os.getpid()), _machine(), secrets.token_hex(8))
    named, doubted = None, None
    while (theirs := _try(path, mine, option)) is not None:
        owner, foreign = theirs
        if not patient and (not foreign or doubted not in (None, theirs)):
            raise _in_use(what, owner)
        if owner != named:
            doing = patient or "may have ended without removing its lock"
            print(f"waiting for {owner}, which {doing}", file=sys.stderr, flush=True)
        named, doubted = owner, doubted or theirs
        time.sleep(POLL)
    return mine


def _try(path: Path, mine: Owner, option: str) -> tuple[Owner, float] | None:
    """Take the lock; if somebody alive has it, return them, and their last heartbeat if it is the only sign of life."""
    candidate = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    content = json.dumps(asdict(mine))
    try:
        candidate.write_text(content)
        while True:
            if _create(path, candidate, content):
                return None
            owner, beat = _owner(path)
            os.utime(candidate)
            now = candidate.stat().st_mtime
            if owner is not None and not _dead(owner, now - beat):
                return owner, 0.0 if owner.machine == mine.machine else beat
            if owner is not None:
                _remove(path, owner, candidate, content)
    except OSError as error:
        raise UserError(f"{option} {described(error, path.parent)}") from error
    finally:
        candidate.unlink(missing_ok=True)


def _create(path: Path, candidate: Path, content: str) -> bool:
    """Give the lock its name, if that is free; nobody sees half of it, where the file system has hard links."""
    try:
        os.link(candidate, path)
    except FileExistsError:
        return False
    except OSError:
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(content)
        except FileExistsError:
            return False
    return True


def _remove(path: Path, dead: Owner, candidate: Path, content: str) -> None:
    """Remove the lock of an owner who is dead; only one process at a time does, and looks again before it does."""
    guard = path.with_name(f"{path.name}.dead")
    if _create(guard, candidate, content):
        try:
            if _owner(path)[0] == dead:
                path.unlink(missing_ok=True)
        finally:
            guard.unlink(missing_ok=True)
        return
    _sweep(path, candidate.stat().st_mtime)
    time.sleep(POLL / 50)


def _sweep(path: Path, now: float) -> None:
    """Remove what processes that were killed while they took this lock have left beside it."""
    for other in path.parent.iterdir():
        if other.name.startswith(f"{path.name}."):
            owner, beat = _owner(other)
            if owner is not None and _dead(owner, now - beat):
                other.unlink(missing_ok=True)


def _owner(path: Path) -> tuple[Owner | None, float]:
    """Return who holds a lock, None if nobody does, and the last heartbeat."""
    try:
        # It is opened, since a network file system may answer a bare stat from memory.
        with path.open(encoding="utf-8", errors="replace") as file:
            beat, content = os.fstat(file.fileno()).st_mtime, file.read()
    except (FileNotFoundError, NotADirectoryError):
        return None, 0.0
    try:
        return Owner(**json.loads(content)), beat
    except (ValueError, TypeError):  # of an earlier version, or half written where there are no hard links
        return Owner("an unknown host", 0, "an unknown time", "", "", content), beat


def _dead(owner: Owner, silent: float) -> bool:
    """Return whether an owner is gone: by its process on this machine, else by the seconds without a heartbeat.

    A suspended process has no heartbeat, but is still there.
    """
    if owner.machine != _machine():
        return silent > STALE
    return _started(owner.pid) not in (owner.started, UNKNOWN)


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return f"{socket.gethostname()} {boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return f"{socket.gethostname()} {uuid.getnode()}"


def _started(pid: int) -> str:
    """Return when a process of this machine started, in the system's terms; an empty string if it is gone."""
    try:
        state, *fields = (
            Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        )
        return "" if state in "ZX" else fields[18]
    except OSError:
        pass
    if Path("/proc/self/stat").exists():  # /proc may hide the processes of other users
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return ""
        except PermissionError:
            return UNKNOWN
        return UNKNOWN
    line = ["ps", "-o", "stat=,lstart=", "-p", str(pid)]
    state, _, start = subprocess.run(line, capture_output=True, text=True).stdout.strip().partition(" ")
    return "" if state[:1] in ("", "Z") else start.strip()


@contextmanager
def _beating(path: Path, owner: Owner, what: Path) -> Iterator[Check]:
    """Renew the lock in a thread; give a function that raises if another process has taken it."""
    over, lost = threading.Event(), threading.Event()
    renewed = time.monotonic()

    def renew() -> None:
        nonlocal renewed
        with suppress(OSError):  # a network file system may come back
            if _owner(path)[0] != owner:
                lost.set()
                return
            os.utime(path)
            renewed = time.monotonic()

    def beat() -> None:
        while not (lost.is_set() or over.wait(INTERVAL)):
            renew()

    def check() -> None:
        if time.monotonic() - renewed > STALE / 2:
            renew()
        if lost.is_set():
            raise UserError(f"{what} has been taken over, or its lock removed, while this process did not run: it ends")

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield check
    finally:
        over.set()
        thread.join()

"""Who is at a run? One process of all machines that share a folder, found out without asking them.

A claim is a folder with its owner's name in it. It is filled under a hidden name and then renamed, which fails where
another one stands, on one machine or on many: nobody ever sees a claim without an owner. The owner also holds a lock on
it that ends with the process and with the child processes that it is handed to. So it is known on the owner's machine
whether anybody is still at it, whichever process numbers have been given out again since.
"""

import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from moeut.files import held_by_one_process
from moeut.model.tensor_files import read_json, write_json

OWNER = "owner.json"


class TakenError(ValueError):
    """What one wants to do is claimed by another process; says which, and what to do if that has ended."""


class Owner(NamedTuple):
    """The process that made a claim."""

    host: str
    process: int
    since: str

    def __str__(self) -> str:
        """In words."""
        return f"process {self.process} on {self.host}, since {self.since}"


@contextmanager
def claimed(folder: Path, *, takeover: bool = False) -> Iterator[int]:
    """While inside, what `folder` stands for is this process's; gives the lock, for child processes to inherit.

    takeover: also take a claim whose process has ended on this machine. Raises TakenError where the claim is another's.
    """
    me = Owner(socket.gethostname(), os.getpid(), datetime.now(UTC).isoformat(timespec="seconds"))
    mine = folder.with_name(f".{folder.name}.{me.host}.{me.process}")
    mine.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, mine, ignore_errors=True)
        lock = stack.enter_context(held_by_one_process(mine))
        write_json(mine / OWNER, me._asdict())
        try:
            os.rename(mine, folder)
        except OSError:
            lock = stack.enter_context(_that_of_an_ended_process(folder, takeover))
            write_json(folder / OWNER, me._asdict())
            shutil.rmtree(mine)
        try:
            yield lock
        finally:
            # Away all at once: a claim that is emptied first could be taken in the middle of it.
            os.rename(folder, mine)


@contextmanager
def _that_of_an_ended_process(folder: Path, takeover: bool) -> Iterator[int]:
    with ExitStack() as stack:
        try:
            owner = Owner(**read_json(folder / OWNER))
        except ValueError:
            raise TakenError(f"{folder.name}: has just been given back; ask again") from None
        try:
            lock = stack.enter_context(held_by_one_process(folder))
            still_there = os.path.samestat(os.fstat(lock), folder.stat())
        except ValueError:
            raise TakenError(f"{folder.name}: {owner}, is at it") from None
        except FileNotFoundError:
            lock, still_there = -1, False
        if not still_there:
            raise TakenError(f"{folder.name}: has just been given back; ask again")
        if owner.host != socket.gethostname():
            raise TakenError(f"{folder.name}: {owner}, claimed it; if that has ended, remove {folder}")
        if not takeover:
            raise TakenError(f"{folder.name}: {owner}, claimed it and has ended; --takeover goes on in its place")
        yield lock

"""A server and all that it starts: kept together, paused, measured and stopped for sure."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

TICK = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


class Process:
    """A command that runs until `stop`, with its descendants, those that left its group included.

    Args:
        command: What to run.
        env: On top of this process's environment.
        log: File for what it prints.
    """

    def __init__(self, command: Sequence[str], env: Mapping[str, str], log: Path) -> None:
        libc = ctypes.CDLL(None)

        def adopt() -> None:
            # Orphans below become this process's children, so that none is lost from sight.
            libc.prctl(PR_SET_CHILD_SUBREAPER, 1)
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)

        with log.open("wb") as file:
            self._process = subprocess.Popen(
                command,
                env={**os.environ, **env},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
                preexec_fn=adopt,
            )

    @property
    def ended(self) -> bool:
        """Whether the command itself is over."""
        return self._process.poll() is not None

    def tree(self) -> list[int]:
        """Ids of the command's process and of all its descendants."""
        children: dict[int, list[int]] = {}
        for pid, fields in _processes():
            children.setdefault(int(fields[1]), []).append(pid)
        found = [self._process.pid]
        for pid in found:
            found.extend(children.get(pid, ()))
        return found

    def cpu(self) -> float:
        """Seconds of processor time so far, ended descendants included."""
        mine = set(self.tree())
        return sum(
            sum(int(ticks) for ticks in fields[11:15]) / TICK
            for pid, fields in _processes()
            if pid in mine
        )

    def memory(self) -> int:
        """Resident bytes, pages shared between processes counted in each."""
        mine = set(self.tree())
        return sum(int(fields[21]) * PAGE for pid, fields in _processes() if pid in mine)

    def pause(self) -> None:
        """Stop taking processor time until `resume`."""
        _signal(self.tree(), signal.SIGSTOP)

    def resume(self) -> None:
        """Go on."""
        _signal(self.tree(), signal.SIGCONT)

    def stop(self) -> None:
        """End the command, politely for a few seconds, then all that is left of it."""
        self.resume()
        family = self.tree()
        self._process.terminate()
        limit = time.monotonic() + 8
        while time.monotonic() < limit and not self.ended:
            time.sleep(0.05)
            family = [*dict.fromkeys([*family, *self.tree()])]
        alive = dict(_processes())
        ours = {pid for pid in family if pid in alive}
        _signal(ours, signal.SIGKILL)
        self._process.wait(10)


def _processes() -> Iterable[tuple[int, list[str]]]:
    """Each process's id and the fields of its `stat` from the state on."""
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                stat = Path(entry.path, "stat").read_text()
            except OSError:
                continue
            yield int(entry.name), stat.rpartition(")")[2].split()


def _signal(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue

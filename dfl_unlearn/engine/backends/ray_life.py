"""A running Ray: whether it still lives, and how it ends without leftovers."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any

import psutil

from dfl_unlearn.errors import ResourceError

_LOOKS = 1.0  # seconds from look to look at Ray's own processes
_KNOCKS = 5.0  # seconds from try to try to reach another machine's
_MISSED = 3  # tries in a row that count as its death
_PATIENCE = 30.0  # seconds that Ray may take to end


class Session:
    """A running Ray that this program started or joined.

    Attributes:
        ray: The module.
        cpus: Workers that fit.
        ours: Whether this program started it, and so ends all of it.
        joined: Address of the cluster that was joined, or None.
        idle: Workers that runs left to the next one, with their threads.
    """

    def __init__(
        self, ray: Any, *, cpus: int, ours: bool, joined: str | None = None
    ) -> None:
        """Note which of Ray's processes must live.

        Args:
            ray: The module, initialized.
            cpus: Workers that fit.
            ours: Whether this program started it.
            joined: Address of the cluster that this program joined, and so leaves.
        """
        self.joined = joined
        self.ray, self.cpus, self.ours = ray, cpus, ours
        self.idle: list[tuple[int, Any]] = []
        context = ray.get_runtime_context()
        self._address: tuple[str, int] = _split(context.gcs_address)
        self._daemons = _daemons(context.get_node_id(), self._address[1], ours=ours)
        self._far = all(p.info["name"] != "gcs_server" for p in self._daemons)
        self._processes: dict[int, psutil.Process] = {}
        self._looked = self._knocked = time.monotonic()
        self._missed = 0
        self._cause = ""
        if ours:
            self.remember(p.pid for p in psutil.Process().children(recursive=True))

    def check(self) -> None:
        """Look at Ray's own processes, once in a second.

        Raises:
            ResourceError: If one has ended without which nothing goes on.
        """
        now = time.monotonic()
        if now - self._looked > _LOOKS and not self._cause:
            self._looked = now
            self._cause = self._failed(now)
        if self._cause:
            raise ResourceError(
                f"Ray's {self._cause}; without it workers can be neither reached nor "
                "replaced. It was not ended by this program: the machine may be short "
                "of memory. Start again, with fewer workers or engine='inline'"
            )

    def lives(self) -> bool:
        """Tell whether Ray can still be asked for something."""
        try:
            self._looked = 0.0
            self.check()
        except ResourceError:
            return False
        return True

    def remember(self, pids: Iterable[int]) -> None:
        """Note processes that must not outlive the session; other machines' are not.

        Args:
            pids: Of workers and of Ray's own processes.
        """
        if self.ours:
            for pid in pids:
                with contextlib.suppress(psutil.NoSuchProcess):
                    self._processes.setdefault(pid, psutil.Process(pid))

    def end(self) -> None:
        """End Ray where this program started it; else only its workers."""
        if self.ours:
            self.remember(p.pid for p in psutil.Process().children(recursive=True))
        elif self.ray.is_initialized() and self.lives():
            for _, actor in self.idle:
                self.ray.kill(actor)
        self.idle.clear()
        if not (self.ours or self.joined):
            return
        # A thread, since with dead daemons this may take for ever.
        ending = threading.Thread(target=self.ray.shutdown, daemon=True)
        ending.start()
        ending.join(_PATIENCE)
        left = [p for p in self._processes.values() if p.is_running()]
        _, left = psutil.wait_procs(left, timeout=1)
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=3)

    def _failed(self, now: float) -> str:
        for process in self._daemons:
            if not _runs(process):
                return f"{process.info['name']} (process {process.pid}) has ended"
        if self._far and now - self._knocked > _KNOCKS:
            self._knocked = now
            self._missed = 0 if _open(self._address) else self._missed + 1
            if self._missed >= _MISSED:
                return f"head at {':'.join(map(str, self._address))} does not answer"
        return ""


def _daemons(node: str, port: int, *, ours: bool) -> list[psutil.Process]:
    """Return this machine's raylet of the session, and its head where it is here."""

    def wanted(process: psutil.Process) -> bool:
        line = process.info["cmdline"] or []
        if process.info["name"] == "raylet":
            return f"--node_id={node}" in line
        if process.info["name"] == "gcs_server":
            return ours or f"--gcs_server_port={port}" in line
        return False

    here: Iterator[psutil.Process] = psutil.process_iter(["name", "cmdline", "ppid"])
    if ours:
        below = {p.pid for p in psutil.Process().children(recursive=True)}
        here = (p for p in here if p.pid in below)
    return [p for p in here if wanted(p)]


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _open(address: tuple[str, int]) -> bool:
    try:
        with socket.create_connection(address, timeout=2):
            return True
    except OSError:
        return False

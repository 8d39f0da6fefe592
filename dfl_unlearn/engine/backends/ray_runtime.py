"""Ray, started for this program alone: on loopback, verified, and ended afterwards.

The only module that calls ``ray.init``. Left alone, Ray listens on every interface of
the machine, and whoever reaches it can run code. Here it is told to stay on loopback
and to ask for a token, and before anything is sent the listening sockets of all its
processes are looked at: one outside loopback ends the session with an error.
"""

import logging
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from typing import Any

import psutil

from dfl_unlearn.engine.memory import available_memory
from dfl_unlearn.errors import InsecureRayError, RayVersionError, ResourceError

_log = logging.getLogger(__name__)

OLDEST = (2, 52)

# Read by Ray when it is imported or started; what the user has set stays.
_ENVIRONMENT = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # on Linux: use 127.0.0.1 only
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DISABLE_IMPORT_WARNING": "1",
}

Socket = tuple[str, int]


@dataclass(frozen=True, kw_only=True)
class Session:
    """A running Ray.

    Attributes:
        ray: The module.
        cpus: Workers that fit.
        ours: Whether this program started it, and so ends it.
    """

    ray: Any
    cpus: int
    ours: bool


_open: list[Session] = []
_prepared: list[bool] = []  # whether the environment was set before Ray was imported


@contextmanager
def ray_session(cpus: int) -> Iterator[Session]:
    """Run a block with Ray; an open session is shared, the outermost ends it.

    Several runs in one program start Ray only once when they lie in one block:

        with ray_session(2):
            ...  # simulate(..., execution=ExecutionConfig(engine="ray", workers=2))

    Args:
        cpus: Workers that must fit, >= 1.

    Yields:
        The session.

    Raises:
        ResourceError: If the open session has room for fewer workers.
    """
    if _open:
        if cpus > _open[-1].cpus:
            raise ResourceError(
                f"workers: must be <= {_open[-1].cpus}, for which this Ray session was "
                f"started, got {cpus}; use fewer or open it with ray_session({cpus})"
            )
        yield _open[-1]
        return
    home = Path(tempfile.mkdtemp(prefix="dfl-ray-"))
    try:
        session = _start(cpus, home)
        _open.append(session)
        try:
            yield session
        finally:
            _open.remove(session)
            if session.ours:
                session.ray.shutdown()
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _start(cpus: int, home: Path) -> Session:
    """Start Ray, or take the one that the user's program has started.

    Returns:
        The session.

    Raises:
        InsecureRayError: If it listens beyond loopback.
        ResourceError: If the user's has room for fewer workers.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if not {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & set(os.environ):
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)  # else Ray keeps a file
    before = _listening(psutil.Process())
    if "ray" in sys.modules and not _prepared:
        _log.warning(
            "ray was imported before dfl_unlearn could prepare it; its sockets are "
            "checked all the same"
        )
    _prepared.append(True)
    import ray

    check_version(ray.__version__)
    if ray.is_initialized():
        _log.warning("Ray was started by this program before; it is used as it is")
        _verify(set())
        room = int(ray.cluster_resources().get("CPU", 0))  # type: ignore[no-untyped-call]
        if room < cpus:
            raise ResourceError(
                f"workers: must be <= {room}, the CPUs of the running Ray, got {cpus}; "
                "use fewer workers or let this package start Ray"
            )
        return Session(ray=ray, cpus=room, ours=False)
    room = available_memory()
    ray.init(
        num_cpus=cpus,
        include_dashboard=False,
        log_to_driver=False,
        configure_logging=False,
        object_store_memory=max(100 * 2**20, min(room // 4, 2 * 2**30)),
        _temp_dir=str(home),
    )
    try:
        _verify(before)
    except InsecureRayError:
        ray.shutdown()
        raise
    return Session(ray=ray, cpus=cpus, ours=True)


def check_version(version: str) -> None:
    """Refuse a Ray without token authentication.

    Args:
        version: ``ray.__version__``.

    Raises:
        RayVersionError: If it is older than 2.52.
    """
    parts = version.split(".")
    if (int(parts[0]), int(parts[1])) < OLDEST:
        raise RayVersionError(
            f"ray: must be {'.'.join(map(str, OLDEST))} or later, got {version}; older "
            "ones let whoever reaches a port run code: pip install -U ray"
        )


def check_loopback(sockets: set[Socket]) -> None:
    """Refuse sockets that other machines can reach.

    Args:
        sockets: Address and port of each.

    Raises:
        InsecureRayError: If one of them is not on loopback; names it.
    """
    for host, port in sorted(sockets):
        address = ip_address(host)
        if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        if not address.is_loopback:
            raise InsecureRayError(
                f"Ray listens on {host}:{port}, which other machines can reach; it was "
                "stopped and nothing was sent. Unset RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER "
                "and RAY_ADDRESS, or use engine='inline'"
            )


def ray_sockets(before: set[Socket]) -> set[Socket]:
    """Return the listening sockets of Ray's processes.

    Args:
        before: Sockets that this process had before Ray was started.

    Returns:
        Those of all processes below this one, and this one's new ones.
    """
    process = psutil.Process()
    found = _listening(process) - before
    for child in process.children(recursive=True):
        found |= _listening(child)
    return found


def _verify(before: set[Socket]) -> None:
    check_loopback(ray_sockets(before))


def _listening(process: psutil.Process) -> set[Socket]:
    try:
        return {
            (c.laddr.ip, c.laddr.port)
            for c in process.net_connections(kind="inet")
            if c.status == psutil.CONN_LISTEN
        }
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return set()

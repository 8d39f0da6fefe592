"""Ray, started for this program alone: on loopback, verified, and ended afterwards.

The only module that calls ``ray.init``. Left alone, Ray listens on every interface of
the machine, and whoever reaches it can run code. Here it is told to stay on loopback
and to ask for a token, and before anything is sent the listening sockets of all its
processes are looked at: one outside loopback ends the session with an error.
"""

import atexit
import logging
import os
import secrets
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import psutil

from dfl_unlearn.engine.backends.ray_life import Session
from dfl_unlearn.engine.backends.ray_sockets import (
    check_loopback,
    listening,
    ray_sockets,
)
from dfl_unlearn.engine.memory import available_memory
from dfl_unlearn.errors import (
    DependencyError,
    InsecureRayError,
    RayVersionError,
    ResourceError,
)

_log = logging.getLogger(__name__)

OLDEST = (2, 52)

# Read by Ray when it is imported or started; what the user has set stays.
_ENVIRONMENT = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # on Linux: use 127.0.0.1 only
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DISABLE_IMPORT_WARNING": "1",
}
_ENVIRONMENT_HERE = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"}  # for one machine only

_open: list[Session] = []
_prepared: list[bool] = []  # whether the environment was set before Ray was imported


@contextmanager
def ray_session(
    cpus: int, *, address: str | None = None, allow_remote: bool = False
) -> Iterator[Session]:
    """Run a block with Ray; an open session is shared, the outermost ends it.

    Several runs in one program start Ray only once when they lie in one block, and a
    run takes over the worker processes of the one before:

        with ray_session(2):
            ...  # simulate(..., execution=ExecutionConfig(engine="ray", workers=2))

    Args:
        cpus: Workers that must fit, >= 1.
        address: ``host:port`` of a cluster to join; None starts Ray on this machine.
        allow_remote: Whether other machines may take part: needed to join a cluster,
            also one that is on this machine, whose other members can run code as the
            user; sockets beyond loopback then only give a warning.

    Yields:
        The session.

    Raises:
        ResourceError: If the session has room for fewer workers or is another one.
    """
    if _open:
        if cpus > _open[-1].cpus:
            raise ResourceError(
                f"workers: must be <= {_open[-1].cpus}, for which this Ray session was "
                f"started, got {cpus}; use fewer or open it with ray_session({cpus})"
            )
        if address is not None and address != _open[-1].joined:
            raise ResourceError(
                f"ray_address: must be {_open[-1].joined} while this Ray session is "
                f"open, got {address}; a program uses one Ray at a time"
            )
        yield _open[-1]
        return
    home = Path(tempfile.mkdtemp(prefix="dfl-ray-"))
    atexit.register(_clean, home)  # for a block that is never left
    try:
        if address is None:
            session = _start(cpus, home, allow_remote=allow_remote)
        else:
            session = _join(address, cpus, allow_remote=allow_remote)
        _open.append(session)
        yield session
    finally:
        atexit.unregister(_clean)
        _clean(home)


def _clean(home: Path) -> None:
    """End what is open and remove Ray's files."""
    while _open:
        session = _open.pop()
        session.end()
    shutil.rmtree(home, ignore_errors=True)


def _import_ray(address: str | None = None) -> Any:
    for name, value in _ENVIRONMENT.items():
        if name in _ENVIRONMENT_HERE and address and not _on_loopback(address):
            continue  # a cluster of several machines has other addresses
        os.environ.setdefault(name, value)
    if "ray" in sys.modules and not _prepared:
        _log.warning(
            "ray was imported before dfl_unlearn could prepare it; its sockets are "
            "checked all the same"
        )
    _prepared.append(True)
    import ray

    check_version(ray.__version__)
    return ray


def _start(cpus: int, home: Path, *, allow_remote: bool) -> Session:
    """Start Ray, or take the one that the user's program has started.

    Returns:
        The session.

    Raises:
        InsecureRayError: If it listens beyond loopback.
        ResourceError: If the user's has room for fewer workers.
    """
    if not {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & set(os.environ):
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)  # else Ray keeps a file
    before = listening(psutil.Process())
    ray = _import_ray()
    if _initialized(ray):
        _log.warning("Ray was started by this program before; it is used as it is")
        _verify(set(), allow_remote=allow_remote)
        return Session(ray, cpus=_room(ray, cpus), ours=False)
    room = available_memory()
    with _own_signals():
        ray.init(
            num_cpus=cpus,
            include_dashboard=False,
            log_to_driver=False,
            configure_logging=False,
            object_store_memory=max(100 * 2**20, min(room // 4, 2 * 2**30)),
            _temp_dir=str(home),
        )
    session = Session(ray, cpus=cpus, ours=True)
    try:
        _verify(before, allow_remote=allow_remote)
    except InsecureRayError:
        session.end()
        raise
    return session


def _join(address: str, cpus: int, *, allow_remote: bool) -> Session:
    """Join a running cluster, with permission and by token only.

    Returns:
        The session.

    Raises:
        InsecureRayError: Without the permission, or if one of the two sides does not
            ask for a token.
        ResourceError: If nothing answers or there is room for fewer workers.
    """
    if not allow_remote:
        raise InsecureRayError(
            f"ray_address: joining {address} needs ray_allow_remote=True "
            "(--ray-allow-remote): code and data are sent as pickle, and every machine "
            "in that cluster can run code as you; or let this package start Ray"
        )
    ray = _import_ray(address)
    if os.environ["RAY_AUTH_MODE"].lower() != "token" or not _has_token():
        raise InsecureRayError(
            f"ray_address: joining {address} needs token mode, got RAY_AUTH_MODE="
            f"{os.environ['RAY_AUTH_MODE'][:40]} and {'a' if _has_token() else 'no'} "
            "token; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH here and where the "
            "cluster is started"
        )
    if _initialized(ray):
        raise ResourceError(
            f"ray_address: cannot join {address}, since this program started Ray "
            "before; call ray.shutdown() first or leave ray_address out"
        )
    _check_asks_for_token(address)
    _log.warning(
        "code and data are sent as pickle to %s; every machine in that cluster can run "
        "code as you",
        address,
    )
    try:
        with _own_signals():
            ray.init(address=address, log_to_driver=False, configure_logging=False)
    except (ConnectionError, RuntimeError, ray.exceptions.RayError) as error:
        raise ResourceError(
            f"ray_address: no Ray could be joined at {address}: "
            f"{str(error).splitlines()[0][:200] if str(error) else error!r}"
        ) from error
    try:
        return Session(ray, cpus=_room(ray, cpus), ours=False, joined=address)
    except ResourceError:
        ray.shutdown()
        raise


def _initialized(ray: Any) -> bool:
    return bool(ray.is_initialized())


def _room(ray: Any, cpus: int) -> int:
    room = int(ray.cluster_resources().get("CPU", 0))
    if room < cpus:
        raise ResourceError(
            f"workers: must be <= {room}, the CPUs of the running Ray, got {cpus}; "
            "use fewer workers or let this package start Ray"
        )
    return room


def _on_loopback(address: str) -> bool:
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _has_token() -> bool:
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    path = Path(named) if named else Path.home() / ".ray" / "auth_token"
    return bool(os.environ.get("RAY_AUTH_TOKEN")) or path.is_file()


def _check_asks_for_token(address: str) -> None:
    """Ask the cluster's head something without a token; it must refuse.

    Raises:
        DependencyError: If it cannot be asked.
        InsecureRayError: If it answers.
        ResourceError: If nobody is there.
    """
    try:
        import grpc
    except ImportError as error:
        raise DependencyError(
            "grpc: needed to see whether a Ray cluster asks for a token; "
            "pip install grpcio"
        ) from error
    with grpc.insecure_channel(address) as channel:
        ask = channel.unary_unary("/ray.rpc.NodeInfoGcsService/CheckAlive")
        try:
            ask(b"", timeout=10)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNAUTHENTICATED:
                return
            raise ResourceError(
                f"ray_address: no Ray head answers at {address} "
                f"({error.code().name}); must be host:port of a running cluster"
            ) from error
    raise InsecureRayError(
        f"ray_address: the cluster at {address} answers without a token, so whoever "
        "reaches it can run code; start it with RAY_AUTH_MODE=token"
    )


@contextmanager
def _own_signals() -> Iterator[None]:
    """Keep this program's handler of SIGTERM; Ray puts its own in its place."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    kept = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if kept not in (None, signal.SIG_DFL):
            signal.signal(signal.SIGTERM, kept)


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


def _verify(before: set[tuple[str, int]], *, allow_remote: bool) -> None:
    try:
        check_loopback(ray_sockets(before))
    except InsecureRayError as error:
        if not allow_remote:
            raise
        _log.warning("%s", str(error).split(";")[0])

"""Which sockets Ray's processes listen on, and whether other machines reach them."""

from ipaddress import IPv6Address, ip_address

import psutil

from dfl_unlearn.errors import InsecureRayError

Socket = tuple[str, int]


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
                "and RAY_ADDRESS, or use engine='inline'; ray_allow_remote=True "
                "(--ray-allow-remote) allows it"
            )


def ray_sockets(before: set[Socket]) -> set[Socket]:
    """Return the listening sockets of Ray's processes.

    Args:
        before: Sockets that this process had before Ray was started.

    Returns:
        Those of all processes below this one, and this one's new ones.
    """
    process = psutil.Process()
    found = listening(process) - before
    for child in process.children(recursive=True):
        found |= listening(child)
    return found


def listening(process: psutil.Process) -> set[Socket]:
    """Return the sockets on which a process listens; none where it has ended."""
    try:
        return {
            (c.laddr.ip, c.laddr.port)
            for c in process.net_connections(kind="inet")
            if c.status == psutil.CONN_LISTEN
        }
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return set()

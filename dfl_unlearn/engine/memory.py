"""How much memory this process may still take."""

from pathlib import Path


def available_memory() -> int:
    """Return the bytes this process may still take, control groups included."""
    import psutil

    room = int(psutil.virtual_memory().available)
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        (
            "/sys/fs/cgroup/memory/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        ),
    ):
        try:
            most, now = (Path(p).read_text().strip() for p in (limit, used))
        except OSError:
            continue
        if most != "max":
            room = min(room, int(most) - int(now))
    return room

"""A fixed number of linear-algebra threads, since their number changes last bits."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch

_LIMIT: ContextVar[int | None] = ContextVar("_LIMIT", default=None)


@contextmanager
def limited_threads(threads: int) -> Iterator[None]:
    """Run a block with ``threads`` threads in torch and every BLAS, then restore.

    A block inside another with the same number costs nothing: looking for the BLAS
    libraries takes milliseconds, and an audit enters thousands of times.
    """
    from threadpoolctl import threadpool_limits

    if _LIMIT.get() == threads and torch.get_num_threads() == threads:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    token = _LIMIT.set(threads)
    try:
        with threadpool_limits(limits=threads):
            yield
    finally:
        _LIMIT.reset(token)
        torch.set_num_threads(before)


def blas_report() -> list[dict[str, Any]]:
    """Return name, version, kernels and threads of every BLAS that training may use.

    SciPy's own copy is left out: no training arithmetic runs there, and whether it is
    loaded depends on what else a program imported.
    """
    from threadpoolctl import threadpool_info

    keep = ("internal_api", "version", "architecture", "num_threads")
    rows = [
        {key: pool.get(key) for key in keep}
        for pool in threadpool_info()
        if pool.get("user_api") == "blas"
        and "scipy.libs" not in str(pool.get("filepath"))
    ]
    return sorted(rows, key=str)

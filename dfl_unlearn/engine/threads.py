"""A fixed number of linear-algebra threads, since their number changes last bits."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def limited_threads(threads: int) -> Iterator[None]:
    """Run a block with ``threads`` threads in torch and every BLAS, then restore."""
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with threadpool_limits(limits=threads):
            yield
    finally:
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

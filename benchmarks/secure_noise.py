"""Numbers a second: exact noise on a grid against simulated noise from the seed.

Both sides make a whole release: ledger entry, noise, sum. The scalar line is the same
sampler one number at a time, in fractions, as the tests' oracle has it.

    python benchmarks/secure_noise.py                       # the three lines
    python benchmarks/secure_noise.py --numbers 7850 --repeats 20
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import torch
from oracles import discrete_gaussian as oracle

from dfl_unlearn.accounting.ledger import PrivacyLedger
from dfl_unlearn.accounting.release import GaussianRelease
from dfl_unlearn.rng import RngTree

NOISE_STD = 0.4
SCALAR_DRAWS = 200


def rate(numbers: int, repeats: int, work: Callable[[], object]) -> float:
    """Return numbers a second, the median of some repeats."""
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return numbers / statistics.median(seconds)


def release(mode: str, value: torch.Tensor) -> torch.Tensor:
    """Return a value with noise, charged to a ledger in memory."""
    noisy = GaussianRelease(sensitivity=0.05, noise_std=NOISE_STD, mode=mode)
    return noisy(
        value,
        ledger=PrivacyLedger(),
        request_id="r0",
        owner="peer:0",
        observers=("public",),
        rng=RngTree(0),
    )


def main() -> None:
    """Print one line for each way to draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--numbers", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=9)
    given = parser.parse_args()
    value = torch.zeros(given.numbers, dtype=torch.float64)
    rates = {
        mode: rate(given.numbers, given.repeats, lambda mode=mode: release(mode, value))
        for mode in ("simulated", "secure")
    }
    grid = GaussianRelease(sensitivity=0.05, noise_std=NOISE_STD, mode="secure").grid
    assert grid is not None
    variance = (Fraction(NOISE_STD) / Fraction(grid)) ** 2
    generator = RngTree(0).numpy("audit")

    def below(n: int) -> int:
        bits = max(1, (n - 1).bit_length())
        while True:
            drawn = int.from_bytes(generator.bytes((bits + 7) // 8)) >> (-bits % 8)
            if drawn < n:
                return drawn

    rates["secure, one at a time"] = rate(
        SCALAR_DRAWS,
        3,
        lambda: [oracle.draw(variance, below) for _ in range(SCALAR_DRAWS)],
    )
    for name, found in rates.items():
        share = rates["simulated"] / found
        print(f"{name:22} {found:12,.0f} numbers a second  (1/{share:,.1f})")


if __name__ == "__main__":
    main()

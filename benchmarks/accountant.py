"""The sampled Gaussian at random rates, noises and orders against 30 digits.

Prints how far the accountant is above the exact divergence, how often it is below
(never, or the exit status is 1), the same of Opacus and dp-accounting where they are
installed, and the seconds of a curve of all default orders. Needs the extra crosscheck.

    python benchmarks/accountant.py --cases 10000
"""

import argparse
import logging
import sys
import time
import warnings
from collections import defaultdict
from pathlib import Path

import mpmath
import numpy as np

from dfl_unlearn.accounting.rdp import DEFAULT_ORDERS, rdp_sampled_gaussian

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from oracles.sampled_gaussian import exact_rdp, random_cases


def ours(rate, noise, orders):
    return rdp_sampled_gaussian(orders, rate, noise)


def opacus(rate, noise, orders):
    from opacus.accountants.analysis.rdp import compute_rdp

    return np.atleast_1d(
        compute_rdp(q=rate, noise_multiplier=noise, steps=1, orders=list(orders))
    )


def dp_accounting(rate, noise, orders):
    import dp_accounting
    from dp_accounting.rdp import RdpAccountant

    accountant = RdpAccountant(list(orders))
    step = dp_accounting.GaussianDpEvent(noise)
    accountant.compose(dp_accounting.PoissonSampledDpEvent(rate, step))
    return np.asarray(accountant._rdp)


def kind_of(order) -> str:
    if order == int(order):
        return "whole orders"
    return "1.1 ... 10.9" if 1.1 <= order <= 10.9 else "other orders"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    known = {"ours": ours, "Opacus": opacus, "dp-accounting": dp_accounting}
    for name, other in list(known.items())[1:]:
        try:
            other(0.1, 1.0, [2.0])
        except ImportError:
            print(f"{name} is not installed")
            del known[name]
    excess = {name: defaultdict(list) for name in known}
    began = time.perf_counter()
    for rate, noise, order in random_cases(args.cases, args.seed):
        exact = exact_rdp(rate, noise, order, digits=30)
        for name, accountant in known.items():
            value = float(accountant(rate, noise, [order])[0])
            with mpmath.workdps(40):
                ratio = float((mpmath.mpf(value) - exact) / exact)
            excess[name][kind_of(order)].append((ratio, (rate, noise, order)))
    print(
        f"{args.cases} cases in {time.perf_counter() - began:.0f} s; rate 1e-8 ... "
        "0.999, noise multiplier 0.3 ... 200, order 1.01 ... 1024"
    )
    for name, kinds in excess.items():
        for kind, found in sorted(kinds.items()):
            ratios = np.array([ratio for ratio, _ in found])
            finite = np.isfinite(ratios)
            low, high = ratios[finite].min(), ratios[finite].max()
            print(
                f"{name:13} {kind:12} {len(found):5} cases: relative excess "
                f"{low:+.3e} ... {high:+.3e}, below exact {int((ratios < 0).sum())}, "
                f"not finite {int((~finite).sum())}"
            )
    for kind, found in sorted(excess["ours"].items()):
        ratio, (rate, noise, order) = max(found)
        print(
            f"ours, worst of {kind}: {ratio:.12e} at rate {rate!r}, noise multiplier "
            f"{noise!r}, order {order!r}"
        )
    for name, accountant in known.items():
        began = time.perf_counter()
        for k in range(10):
            accountant(0.01, 1 + k / 10, DEFAULT_ORDERS)
        print(f"{name}: {(time.perf_counter() - began) / 10:.3f} s for a curve")
    below = sum(ratio < 0 for found in excess["ours"].values() for ratio, _ in found)
    return 1 if below else 0


if __name__ == "__main__":
    raise SystemExit(main())

"""Print which planted bug is found by which detector, in how many of 20 seeds.

Run from the repository: ``PYTHONPATH=.:tests python tests/mutations/summary.py``.
"""

import sys

from mutations.planted import BUGS

SEEDS = 20


def main():
    sys.stdout.write(f"{'bug':37}{'detector':24}{'detected':>10}{'false alarms':>14}\n")
    for bug in BUGS:
        alarms = sum(bug.fires(seed) for seed in range(SEEDS))
        with bug.plant():
            found = sum(bug.fires(seed) for seed in range(SEEDS))
        counts = f"{f'{found}/{SEEDS}':>10}{f'{alarms}/{SEEDS}':>14}"
        sys.stdout.write(f"{bug.name:37}{bug.detector:24}{counts}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())

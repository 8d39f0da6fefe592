"""Sweeps: one experiment many times, with fields and seeds that vary, and one table.

``axes`` says what varies, ``plan`` makes cases of it, ``run_sweep`` carries them out.
"""

from dfl_unlearn.sweeps.failures import Failure, failed_cases
from dfl_unlearn.sweeps.plan import PlannedCase, Sweep, case_name
from dfl_unlearn.sweeps.reading import load_sweep
from dfl_unlearn.sweeps.run import run_sweep

__all__ = [
    "Failure",
    "PlannedCase",
    "Sweep",
    "case_name",
    "failed_cases",
    "load_sweep",
    "run_sweep",
]

"""Shared fixtures: tests/ on the path for the oracles, tiny networks and data."""

import os
import sys
from pathlib import Path

from hypothesis import settings

# Small products only: more threads would wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

sys.path.insert(0, str(Path(__file__).parent))

settings.register_profile("untimed", deadline=None)  # tests never assert times
settings.load_profile("untimed")

"""Run by the tests in processes of their own: trains on Ray and says its digests.

python ray_program.py digests WORKERS...   one line per engine: name, digest
python ray_program.py daemon NAME ROUND    a run whose daemon dies after a round
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from ray_jobs import ROUGH, After, clean, daemon, kill, on_ray

from dfl_unlearn.engine.backends.fault_hook import FAULT
from dfl_unlearn.engine.backends.ray_runtime import ray_session
from dfl_unlearn.errors import DflUnlearnError


def say(*words):
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


def digests(*workers):
    say("inline", clean().digest, clean(ROUGH).digest)
    with ray_session(max(map(int, workers))):
        for count in workers:
            os.environ[FAULT] = f"delay:20:{count}"
            run, rough = (on_ray(workers=int(count), **c) for c in ({}, CONFIG))
            say(count, run.digest, rough.digest)


CONFIG = {"config": ROUGH}


def daemon_dies(name, round_):
    """End with the error's code when Ray's own process is killed after a round."""
    blow = After(int(round_), lambda: kill(daemon(name)))
    os.environ[FAULT] = "delay:100"
    try:
        on_ray(callbacks=[blow])
    except DflUnlearnError as error:
        say(type(error).__name__, str(error))
        sys.exit(error.exit_code)


if __name__ == "__main__":
    {"digests": digests, "daemon": daemon_dies}[sys.argv[1]](*sys.argv[2:])

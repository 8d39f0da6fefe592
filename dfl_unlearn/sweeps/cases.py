"""One case of a sweep: begun, gone on with, or found complete."""

import logging
import shutil
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from dfl_unlearn.conduct import Refusal
from dfl_unlearn.engine.threads import limited_threads
from dfl_unlearn.errors import ConfigMismatchError, InputFileError
from dfl_unlearn.experiment import (
    read_experiment,
    resume_experiment,
    run_experiment,
)
from dfl_unlearn.results.sweep import CASE
from dfl_unlearn.store.files import from_json
from dfl_unlearn.store.folder import RunFolder
from dfl_unlearn.sweeps.plan import name_of_config

_log = logging.getLogger(__name__)

FORMAT = 1
# What a run folder has before its configuration; a case killed there began nothing.
_BEFORE = {"lock", "log.jsonl", "config.toml"}


def run_case(
    place: str, config: Mapping[str, Any], max_graph_mb: int | None = None
) -> None:
    """Do what is missing of a case in its folder, in this process with one thread.

    The arguments are JSON values, so that any process can be given them.

    Args:
        place: Its run folder; need not exist.
        config: Its experiment as plain tables.
        max_graph_mb: Limit of a graph file's size in MB; None is 256.

    Raises:
        ConfigMismatchError: If the folder holds another experiment.
        InputFileError: If it holds something else than a run.
    """
    began, folder = time.monotonic(), Path(place)
    experiment = read_experiment(config, CASE)
    execution = replace(experiment.execution, progress=False)
    refusals: list[Refusal] = []
    with limited_threads(1), _warnings_in_the_log():
        if (folder / "config.json").is_file():
            check_case(folder)
            run, *_ = resume_experiment(
                folder,
                execution=execution,
                refusals=refusals,
                max_graph_mb=max_graph_mb,
            )
        else:
            _remove_stub(folder)
            experiment = replace(experiment, name=folder.name, execution=execution)
            run, *_ = run_experiment(
                experiment,
                folder.parent,
                refusals=refusals,
                max_graph_mb=max_graph_mb,
            )
    RunFolder(folder).write_json(
        CASE,
        {
            "format": FORMAT,
            "digest": run.digest,
            "seconds": time.monotonic() - began,
            "refused": [
                {
                    "request": refused.request_id,
                    "protocol": refused.protocol,
                    "error": type(refused.error).__name__,
                    "message": str(refused.error),
                }
                for refused in refusals
            ],
        },
    )


def check_case(folder: Path) -> None:
    """Check that a case's folder holds the experiment that it is named after.

    Args:
        folder: The run folder.

    Raises:
        ConfigMismatchError: If it holds another one, or none that can be read.
    """
    place = folder / "config.json"
    try:
        found = name_of_config(from_json(place.read_text("utf-8")))
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigMismatchError(
            f"{place}: must be the configuration of case {folder.name}, got nothing "
            f"readable ({type(error).__name__}); move the folder away, and the case is "
            "run again"
        ) from error
    if found != folder.name:
        raise ConfigMismatchError(
            f"{place}: must be the configuration of case {folder.name}, got that of "
            f"{found}; the folder was changed: move it away, and the case is run again"
        )


def _remove_stub(folder: Path) -> None:
    """Remove what is left of a case that was killed before it began.

    Args:
        folder: Its folder.

    Raises:
        InputFileError: If it holds more.
    """
    if not folder.is_dir():
        return
    more = [
        path.name
        for path in folder.iterdir()
        if path.name not in _BEFORE and ".tmp-" not in path.name
    ]
    if more:
        raise InputFileError(
            f"{folder}: must be a case's run folder, got {sorted(more)[0]} without "
            "config.json; move the folder away, and the case is run again"
        )
    shutil.rmtree(folder)


@contextmanager
def _warnings_in_the_log() -> Iterator[None]:
    """Write warnings into the case's ``log.jsonl``, not once per case to the terminal.

    Yields:
        Nothing.
    """

    def note(message: Any, category: type[Warning], *where: Any, **more: Any) -> None:
        _log.warning("%s: %s", category.__name__, message)

    with warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.showwarning = note
        yield

"""A run whose state with its committed requests is lost: made again, checked in bits.

From a checkpoint from before the requests, or from the first round, training is run
again to where each request was made; the request is carried out again by its own keys,
and every state on the way must have the digest that was written down. Nothing is
charged and nothing is sent a second time: the same noise makes the same bytes.
"""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.data.peers import PeerData
from dfl_unlearn.engine.checkpoint import newest_checkpoint, write_checkpoint
from dfl_unlearn.engine.config import ExecutionConfig
from dfl_unlearn.engine.figures import rows_of
from dfl_unlearn.engine.loop import train
from dfl_unlearn.engine.progress import Progress
from dfl_unlearn.engine.resuming import Unfinished, reopen
from dfl_unlearn.engine.run import TrainedRun
from dfl_unlearn.engine.simulator import resume
from dfl_unlearn.engine.stored import read_ledger, request_from
from dfl_unlearn.engine.stored_parts import read_history
from dfl_unlearn.errors import (
    CorruptStateError,
    InputFileError,
    ResumeWouldUndoUnlearningError,
)
from dfl_unlearn.models.flat import FlatModel
from dfl_unlearn.rng import RngTree
from dfl_unlearn.store.files import sync_folder
from dfl_unlearn.store.folder import RunFolder
from dfl_unlearn.unlearning.replay import replay_request


def resume_replaying(
    path: str | Path,
    *,
    rounds: int | None = None,
    data: PeerData | None = None,
    model: FlatModel | None = None,
    execution: ExecutionConfig | None = None,
) -> TrainedRun:
    """Go on with a run; carry its committed requests out again where that is needed.

    Also restores a finished run whose final state is lost or damaged.

    Args:
        path: The run folder.
        rounds: As in ``resume``.
        data: As in ``resume``.
        model: As in ``resume``.
        execution: As in ``resume``.

    Returns:
        The finished run.

    Raises:
        CorruptStateError: If what is left on disk is damaged in more than its state.
        InputFileError: If a file is missing that cannot be made again.
    """
    given: dict[str, Any] = {"data": data, "model": model}
    folder = RunFolder(path)
    with folder.locked():
        try:
            known = reopen(folder, **given)
        except (CorruptStateError, InputFileError):
            if not folder.is_done:
                raise
            os.unlink(folder.path("done.json"))
            sync_folder(folder.root)
            known = reopen(folder, **given)
        if isinstance(known, Unfinished) and known.requests:
            try:
                lost = newest_checkpoint(folder, known.identity) is None
            except ResumeWouldUndoUnlearningError:
                lost = True
            if lost:
                _made_again(known, execution or ExecutionConfig())
    return resume(folder.root, rounds=rounds, execution=execution, **given)


def _made_again(lost: Unfinished, execution: ExecutionConfig) -> None:
    """Write a checkpoint of the state after the last committed request."""
    manifest, folder = lost.manifest, lost.folder
    requests = [request_from(past) for past in manifest["forgotten"]]
    before = replace(
        lost,
        data=_data_before(lost.data, requests),
        manifest={**manifest, "forgotten": []},
    )
    known = replace(before.identity, data=before.data.fingerprint())
    run = _trained(before, None, newest_checkpoint(folder, known), 0, execution)
    for request, entry in zip(requests, manifest["committed"], strict=True):
        if run.state.round < entry["round"]:
            run = _trained(before, run, None, int(entry["round"]), execution)
        run = replay_request(run, folder.root, request.request_id).as_run()
    history = read_history(folder, lost.config)
    rows = [] if history is None else rows_of(history)
    write_checkpoint(
        folder,
        Progress(
            state=run.state,
            recorded=None,
            rows=tuple(row for row in rows if row[0] <= run.state.round),
        ),
        lost.identity,
        ledger=read_ledger(folder, manifest, lost.config).head,
        keep=2,
    )


def _trained(
    before: Unfinished,
    run: TrainedRun | None,
    start: Progress | None,
    rounds: int,
    execution: ExecutionConfig,
) -> TrainedRun:
    """Train to the round of the next request, in memory.

    Returns:
        The run: from its keys or a checkpoint, or from a state with earlier requests.
    """
    committed = before.manifest["committed"]
    rounds = rounds or int(committed[0]["round"])
    config = replace(before.config, rounds=rounds)
    arithmetic = before.manifest["info"]["arithmetic"]
    if run is not None:
        start = Progress(state=run.state, recorded=None)
    trained = train(
        before.topology,
        before.data if run is None else run.data,
        before.model,
        config,
        execution,
        (),
        RngTree(config.seed),
        label="replaying",
        start=start,
        arithmetic={key: arithmetic[key] for key in ("kernel", "chunk_peers")},
        keeps_record=run is None,
    )
    if run is None:
        return trained
    info = {**trained.info, "requests": run.requests}
    return replace(
        trained, info=info, carried_out=run.carried_out, personal=run.personal
    )


def _data_before(data: PeerData, requests: list[ForgetRequest]) -> PeerData:
    """Return the data with the requests' rows as if they had never been asked for."""
    bare = replace(data, dropped=None, vacated=None)
    asked = np.zeros(len(data.store), dtype=np.bool_)
    for request in requests:
        asked |= request.mask(bare)

    def left(marks: NDArray[np.bool_] | None) -> NDArray[np.bool_] | None:
        rest = None if marks is None else marks & ~asked
        return rest if rest is not None and rest.any() else None

    return replace(data, dropped=left(~data.keep), vacated=left(data.vacated))

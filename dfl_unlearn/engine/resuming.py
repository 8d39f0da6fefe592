"""Runs that are trained in a folder: begun, gone on with after a kill, made longer.

Before the first round the folder has all that makes the run again: the manifest with
configuration, recipes and fingerprints, the network, and the ledger with the charge of
every private round. From then on a kill costs the rounds since the last checkpoint and
changes no bit: batches and noise are drawn by keys.

A finished run whose ``rounds`` are raised first becomes an unfinished one: its state is
written as a checkpoint, ``done.json`` is removed, the manifest gets the new number. A
kill after any of these steps leaves a run that can be resumed.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dfl_unlearn import _validate
from dfl_unlearn.accounting.ledger import PrivacyLedger
from dfl_unlearn.data.peers import PeerData
from dfl_unlearn.engine.backends.recorder import Recorded
from dfl_unlearn.engine.callbacks import Callback
from dfl_unlearn.engine.checkpoint import (
    Identity,
    check_same_training,
    newest_checkpoint,
    write_checkpoint,
)
from dfl_unlearn.engine.commit import finish_commit
from dfl_unlearn.engine.config import ExecutionConfig, SimulationConfig
from dfl_unlearn.engine.figures import arithmetic_of, is_evaluated, rows_of, versions
from dfl_unlearn.engine.keeping import Keeper
from dfl_unlearn.engine.loop import train
from dfl_unlearn.engine.private import TRAINING, charge_rounds, record_plan
from dfl_unlearn.engine.progress import Progress
from dfl_unlearn.engine.run import TrainedRun, state_digest
from dfl_unlearn.engine.stored import (
    LEDGER,
    begun_manifest,
    carried_out_from,
    check_noise,
    config_from,
    config_to,
    data_and_model,
    finish_run,
    noted_head,
    personal_of,
    read_ledger,
    read_manifest,
    read_run,
    read_state,
    remove_unused_ledger,
)
from dfl_unlearn.engine.stored_parts import read_topology, write_topology
from dfl_unlearn.engine.threads import limited_threads
from dfl_unlearn.errors import (
    ConfigMismatchError,
    DataMismatchError,
    ResumeWouldUndoUnlearningError,
)
from dfl_unlearn.models.flat import FlatModel
from dfl_unlearn.rng import RngTree
from dfl_unlearn.store.files import sync_folder
from dfl_unlearn.store.folder import RunFolder
from dfl_unlearn.store.understood import understood
from dfl_unlearn.topology.graph import Topology

_log = logging.getLogger(__name__)
_MANIFEST, _DONE = "manifest.json", "done.json"


@dataclass(frozen=True, kw_only=True)
class Unfinished:
    """A run in its folder that has rounds before it.

    Attributes:
        folder: The folder, locked.
        manifest: What it says.
        topology: The network.
        data: What each peer holds, forgotten rows marked.
        model: The model.
        config: How it is trained; ``rounds`` may be more than the manifest says.
        finished: The run as it is, where it is finished and is to be trained further.
    """

    folder: RunFolder
    manifest: Mapping[str, Any]
    topology: Topology
    data: PeerData
    model: FlatModel
    config: SimulationConfig
    finished: TrainedRun | None = None

    @property
    def requests(self) -> tuple[str, ...]:
        """Ids of the committed requests that its state carries."""
        return tuple(past["request_id"] for past in self.manifest["forgotten"])

    @property
    def identity(self) -> Identity:
        """What its checkpoints belong to."""
        known = self.manifest
        with understood(f"{self.folder.root}/{_MANIFEST}"):
            return Identity(
                training=known["training"],
                data=known["data"]["fingerprint"],
                graph=known["topology"]["fingerprint"],
                requests=self.requests,
                noted={
                    "versions": versions(),
                    "noise_self_check": known["noise_self_check"],
                    "arithmetic": known["info"]["arithmetic"],
                },
            )


def begin(
    folder: RunFolder,
    topology: Topology,
    data: PeerData,
    model: FlatModel,
    config: SimulationConfig,
) -> Unfinished:
    """Make a folder resumable before the first round.

    Args:
        folder: A folder without a run, locked.
        topology: The network.
        data: What each peer holds.
        model: The model.
        config: How it will be trained.

    Returns:
        The run; nothing is charged yet.
    """
    config = replace(config, record=record_plan(config))
    # A budget that does not suffice is found before anything is written.
    charge_rounds(PrivacyLedger(config.privacy_budget), config.private, config.rounds)
    remove_unused_ledger(folder)
    write_topology(folder, topology)
    ledger = PrivacyLedger(config.privacy_budget, folder.path(LEDGER))
    with limited_threads(config.threads):
        arithmetic = arithmetic_of(model, config)
    manifest = begun_manifest(folder.name, topology, data, model, config) | {
        "ledger": list(ledger.head),
        "planned": [_planned(0, config.rounds, ledger)],
        "info": {"arithmetic": arithmetic},
    }
    folder.write_json(_MANIFEST, manifest)
    return Unfinished(
        folder=folder,
        manifest=manifest,
        topology=topology,
        data=data,
        model=model,
        config=config,
    )


def reopen(
    folder: RunFolder,
    *,
    rounds: int | None = None,
    config: SimulationConfig | None = None,
    data: PeerData | None = None,
    model: FlatModel | None = None,
) -> Unfinished | TrainedRun:
    """Open a run to go on with it; nothing in the folder changes yet.

    Args:
        folder: The run's folder, locked.
        rounds: Rounds in all, not below what was planned; None is what was planned.
        config: Compared with the run's own; only ``rounds`` may be larger.
        data: The peers' data, where they are not stored.
        model: The model, where it is not one of the zoo's.

    Returns:
        The run with rounds before it; the finished one where there is nothing to do.

    Raises:
        ConfigMismatchError: If anything but ``rounds`` differs, or those shrink.
        DataMismatchError: If other data are given.
        StoreCorruptError: If the manifest is damaged.
    """
    folder.remove_leftovers()
    with understood(f"{folder.root}/{_MANIFEST}"):
        finish_commit(folder)
        manifest = read_manifest(folder)
        if config is not None:
            config = replace(config, record=record_plan(config))
            check_same_training(config_to(config), manifest["training"])
            rounds = config.rounds if rounds is None else rounds
        planned = manifest["training"]["rounds"]
        wanted = planned if rounds is None else rounds
        _check_rounds(manifest["training"], wanted)
        if folder.is_done:
            run = read_run(folder.root, data=data, model=model)
            if wanted <= max(planned, run.state.round):
                return run
            return Unfinished(
                folder=folder,
                manifest=manifest,
                topology=run.topology,
                data=run.data,
                model=run.model,
                config=replace(run.config, rounds=wanted),
                finished=run,
            )
        found = _unfinished(folder, manifest, data, model)
        return replace(found, config=replace(found.config, rounds=wanted))


def go_on(
    run: Unfinished,
    execution: ExecutionConfig,
    callbacks: Sequence[Callback] = (),
    *,
    fresh: bool = False,
) -> TrainedRun:
    """Train a run to its last round, from its newest checkpoint that verifies.

    Args:
        run: The run; its folder is locked.
        execution: What changes speed and display only.
        callbacks: Hooks after a round.
        fresh: Whether it was begun just now, so that no checkpoint is looked for.

    Returns:
        The finished run, bound to its folder.

    Raises:
        ResumeWouldUndoUnlearningError: If only states from before a committed request
            are left.
    """
    if run.config.rounds > run.manifest["training"]["rounds"]:
        run = _longer(run)
    folder, manifest, config = run.folder, run.manifest, run.config
    ledger = read_ledger(folder, manifest, config)
    start = None if fresh else newest_checkpoint(folder, run.identity)
    if start is None and run.requests:
        raise ResumeWouldUndoUnlearningError(
            f"{folder.root}: there must be a checkpoint that carries the committed "
            f"requests {', '.join(run.requests)}, got none; training from the first "
            "round again would bring back what was forgotten"
        )
    _charge_missing(ledger, config, manifest["planned"])
    if start is not None:
        _log.info("%s: going on after round %d", folder.root, start.state.round)
    keeper = Keeper(execution, folder=folder, identity=run.identity, ledger=ledger)
    for row in () if start is None else start.rows:
        keeper.evaluated(row)
    recorded = manifest["info"]["arithmetic"]
    finished = train(
        run.topology,
        run.data,
        run.model,
        config,
        execution,
        callbacks,
        RngTree(config.seed),
        label="training",
        ledger=ledger,
        keeper=keeper,
        start=start,
        arithmetic={key: recorded[key] for key in ("kernel", "chunk_peers")},
        keeps_record=start is None or start.recorded is not None,
        requests=run.requests,
        ahead=int(manifest["ahead"]),
    )
    now = finished.info["arithmetic"]
    if now != recorded:
        _log.warning(
            "%s: training went on with other libraries than it began with (%s, then "
            "%s); the last bits may differ from an uninterrupted run's",
            folder.root,
            recorded["blas"],
            now["blas"],
        )
    if start is not None and run.requests and start.state.round >= config.rounds:
        # No round was trained since the request: a committed state is its own digest.
        finished = replace(finished, digest=state_digest(finished.state))
    info = {**manifest["info"], **finished.info}
    return finish_run(
        folder,
        manifest,
        replace(
            finished,
            info=info,
            carried_out=carried_out_from(manifest),
            personal=personal_of(
                folder, manifest, peers=run.data.n, size=run.model.size
            ),
        ),
    )


def _unfinished(
    folder: RunFolder,
    manifest: Mapping[str, Any],
    data: PeerData | None,
    model: FlatModel | None,
) -> Unfinished:
    check_noise(folder, manifest)
    _check_complete(manifest)
    data, model = data_and_model(manifest, data, model)
    known = manifest["data"]["fingerprint"]
    if data.fingerprint() != known:
        raise DataMismatchError(
            f"{folder.root}: data hash {data.fingerprint()[:16]}... differs from "
            f"checkpoint {known[:16]}...; give the data that the run was trained on"
        )
    return Unfinished(
        folder=folder,
        manifest=manifest,
        topology=read_topology(folder, manifest),
        data=data,
        model=model,
        config=config_from(manifest["training"]),
    )


def _check_complete(manifest: Mapping[str, Any]) -> None:
    """Touch all that going on needs, so that nothing is charged before it is there."""
    _validate.integer(at_least=0, ahead=manifest["ahead"])
    for part in manifest["planned"]:
        _validate.integer(at_least=0, first=part["first"], rounds=part["rounds"])
        _validate.integer(at_least=-1, after=part["after"])
    for past in manifest["forgotten"]:
        _validate.of_type(str, forgotten=past["request_id"])
    noted_head(manifest)
    recorded = manifest["info"]["arithmetic"]
    _validate.of_type(str, kernel=recorded["kernel"])
    for key in ("chunk_peers", "blas"):
        recorded[key]
    carried_out_from(manifest)


def _check_rounds(training: Mapping[str, Any], wanted: int) -> None:
    """Refuse fewer rounds, and more of them where that changes the earlier ones.

    Raises:
        ConfigMismatchError: Names both numbers.
    """
    planned = training["rounds"]
    if wanted < planned:
        raise ConfigMismatchError(
            f"training.rounds is {wanted} here but {planned} in the checkpoint; they "
            "may only grow"
        )
    schedule = training["local"]["lr_schedule"]
    if wanted > planned and schedule == "cosine":
        raise ConfigMismatchError(
            f"training.rounds is {wanted} here but {planned} in the checkpoint, and "
            f"training.local.lr_schedule is {schedule!r}: the rates of the rounds that "
            "were run depend on it; start a new run, or use constant or inverse_sqrt"
        )


def _longer(run: Unfinished) -> Unfinished:
    """Raise the number of rounds in the folder, durably, once the budget allows it.

    A finished run first becomes an unfinished one; its record goes on only where it
    covers all rounds: after a committed request it would not.

    Returns:
        The run, as its folder has it now.
    """
    folder, manifest, config, done = run.folder, run.manifest, run.config, run.finished
    ledger = read_ledger(folder, manifest, config)
    first = manifest["training"]["rounds"] if done is None else done.state.round
    extra = config.rounds - first
    charge_rounds(ledger.fork(), config.private, extra, first=first)
    changes: dict[str, Any] = {}
    if done is not None:
        manifest, _ = read_state(folder)
        run = replace(run, manifest=manifest)
        rows = [] if done.history is None else rows_of(done.history)
        info, record = done.info, None if run.requests else done.record
        progress = Progress(
            state=done.state,
            recorded=None
            if record is None
            else Recorded(
                rates=record.step_sizes,
                norms=record.gradient_norms,
                checkpoints=record.checkpoints,
            ),
            rows=tuple(row for row in rows if is_evaluated(row[0], config)),
            seconds=float(info.get("seconds", 0.0)),
            faults={"faults": info["faults"]} if "faults" in info else {},
        )
        write_checkpoint(folder, progress, run.identity, ledger=ledger.head, keep=2)
        os.unlink(folder.path(_DONE))
        sync_folder(folder.root)
        changes = {"ledger": list(ledger.head), "ahead": done.ahead}
    planned = manifest.get("planned", [])  # none in older folders
    longer = {
        **manifest,
        **changes,
        "training": {**manifest["training"], "rounds": config.rounds},
        "planned": [*planned, _planned(first, extra, ledger)],
        "goes_on": {"round": first},  # it is longer than its config.json says
    }
    folder.write_json(_MANIFEST, longer)
    return replace(run, manifest=longer, finished=None)


def _planned(first: int, rounds: int, ledger: PrivacyLedger) -> dict[str, int]:
    """Return what the manifest says of rounds that are to be charged."""
    return {"first": first, "rounds": rounds, "after": ledger.head[0]}


def _charge_missing(
    ledger: PrivacyLedger,
    config: SimulationConfig,
    planned: Sequence[Mapping[str, int]],
) -> None:
    """Charge planned rounds of private training whose charge is not in the ledger.

    The manifest notes how long the ledger was when rounds were planned, so a charge for
    other rounds with the same numbers is not mistaken for theirs. In doubt they are
    charged again.
    """
    for part in planned:
        charged = any(
            entry.seq > part["after"]
            and entry.request_id == TRAINING
            and entry.round == part["first"]
            and getattr(entry.mechanism, "steps", 0) == part["rounds"]
            for entry in ledger.entries
        )
        if not charged:
            charge_rounds(ledger, config.private, part["rounds"], first=part["first"])

"""Runs on disk: written file by file, each whole or not at all.

``manifest.json`` says how data and model are made again, which rows are forgotten and
which state belongs to it; all are checked by their fingerprints, so a changed file or
generator is noticed before anything is computed. It also notes the ledger's last line:
a ledger that is shorter has lost charges; a longer one was charged since.

While a forget request is committed the manifest also holds the one to come, under
``next``. A commit that was interrupted is carried out to its end when the folder is
opened next (``engine.commit``); while another process is at it, the state file says
which of the two is in force.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfl_unlearn import _validate
from dfl_unlearn.accounting.ledger import PrivacyLedger
from dfl_unlearn.data.peers import PeerData
from dfl_unlearn.engine.commit import FINAL, LEDGER, NEXT, PERSONAL, settle_commit
from dfl_unlearn.engine.config import SimulationConfig
from dfl_unlearn.engine.fault_rounds import MEAN_MOVED
from dfl_unlearn.engine.figures import versions
from dfl_unlearn.engine.personal import (
    Personal,
    personal_digest,
    personal_from,
    personal_to,
)
from dfl_unlearn.engine.run import CarriedOut, TrainedRun, state_digest
from dfl_unlearn.engine.state import PeerState
from dfl_unlearn.engine.stored_forms import (
    config_from,
    config_to,
    request_from,
    request_to,
)
from dfl_unlearn.engine.stored_parts import (
    read_history,
    read_record,
    read_topology,
    record_entry,
    write_history,
    write_record,
    write_topology,
)
from dfl_unlearn.errors import (
    InvalidArgumentError,
    MissingInputError,
    NoiseStreamChangedError,
    StoreCorruptError,
)
from dfl_unlearn.models.flat import FlatModel
from dfl_unlearn.models.zoo import models
from dfl_unlearn.rng import RngTree, noise_self_check
from dfl_unlearn.store.files import write_file
from dfl_unlearn.store.folder import RunFolder
from dfl_unlearn.store.understood import understood
from dfl_unlearn.topology.graph import Topology

__all__ = [
    "FINAL",
    "FORMAT",
    "LEDGER",
    "begun_manifest",
    "carried_out_from",
    "carried_out_to",
    "check_noise",
    "check_storable",
    "config_from",
    "config_to",
    "data_and_model",
    "data_entry",
    "finish_run",
    "noted_head",
    "open_folder",
    "personal_of",
    "read_ledger",
    "read_manifest",
    "read_network",
    "read_personal",
    "read_run",
    "read_state",
    "remove_unused_ledger",
    "request_from",
    "request_to",
    "save_run",
]

FORMAT = 1


def save_run(run: TrainedRun, path: str | Path) -> TrainedRun:
    """Write a run into a folder.

    Args:
        run: The run.
        path: A run folder (``RunFolder.create``), or a place where none is yet.

    Returns:
        The run, bound to the folder and with a ledger that is durable there.

    Raises:
        InvalidArgumentError: If the folder holds a run already.
    """
    check_storable(run.config, path)
    folder = open_folder(path)
    with folder.locked():
        remove_unused_ledger(folder)
        write_topology(folder, run.topology)
        ledger = run.ledger.fork(folder.path(LEDGER))
        if run.history is not None:
            write_history(folder, run.history)
        begun = begun_manifest(
            folder.name, run.topology, run.data, run.model, run.config
        )
        begun["carried_out"] = [carried_out_to(past) for past in run.carried_out]
        return finish_run(folder, begun, replace(run, ledger=ledger))


def open_folder(path: str | Path) -> RunFolder:
    """Return an existing run folder, or a new one where there is none.

    Args:
        path: The folder; an empty one becomes a run folder.

    Returns:
        The folder.
    """
    path = Path(path)
    if _is_empty(path):
        write_file(path / "lock", b"")
    return (
        RunFolder(path) if path.exists() else RunFolder.create(path.parent, path.name)
    )


def _is_empty(path: Path) -> bool:
    """Return whether a folder holds nothing, as a kill while it is made leaves it."""
    return (
        path.is_dir()
        and not path.is_symlink()
        and all(place.name.startswith(".lock.tmp-") for place in path.iterdir())
    )


def remove_unused_ledger(folder: RunFolder) -> None:
    """Remove the ledger of a run that was killed before it could begin.

    Args:
        folder: A folder without a manifest, locked.

    Raises:
        InvalidArgumentError: If something was charged in it.
    """
    place = folder.path(LEDGER)
    if place.exists():
        if place.stat().st_size:
            raise InvalidArgumentError(
                f"folder: must not hold another run's ledger, got {place}; choose "
                "another name"
            )
        place.unlink()


def finish_run(
    folder: RunFolder, manifest: Mapping[str, Any], run: TrainedRun
) -> TrainedRun:
    """Write what only a finished run has, ``done.json`` last; may be done again.

    Args:
        folder: The run's folder, locked; network, ledger and rows are there.
        manifest: What is known of the run from before.
        run: The finished run; its ledger is the folder's.

    Returns:
        The run, bound to the folder.
    """
    folder.write_tensors(FINAL, {"params": run.state.params, **run.state.slots})
    if run.personal:
        folder.write_tensors(PERSONAL, personal_to(run.personal))
    if run.record is not None:
        write_record(folder, run.record)
    state = state_digest(run.state)
    _write_fault_event(folder, run)
    folder.write_json(
        "manifest.json",
        {
            **manifest,
            "round": run.state.round,
            "ahead": run.ahead,
            "state": state,
            "final": {"state": state, "digest": run.digest},
            "training": config_to(run.config),
            "record": None if run.record is None else record_entry(run.record),
            "ledger": list(run.ledger.head),
            "personal": personal_digest(run.personal),
            "versions": versions(),
            "info": {**manifest["info"], **run.info},
        },
    )
    folder.finish(run.digest)
    return replace(run, folder=folder.root)


def _write_fault_event(folder: RunFolder, run: TrainedRun) -> None:
    """Write one row that says in how many rounds the peers' mean was not kept."""
    moved = run.info.get("faults", {}).get(MEAN_MOVED, ())
    known = (row.get("what") for row in folder.records() if row.get("type") == "event")
    if moved and MEAN_MOVED not in known:
        folder.append(
            {
                "type": "event",
                "round": moved[0],
                "what": MEAN_MOVED,
                "peer": -1,
                "detail": f"{len(moved)} of {run.state.round} rounds did not keep the "
                "peers' mean, this one first; manifest.json, info.faults, has all",
            }
        )


def check_storable(config: SimulationConfig, path: str | Path) -> None:
    """Refuse a run that could not be kept, before it is trained.

    Args:
        config: How it will be trained.
        path: Where it will be kept.

    Raises:
        InvalidArgumentError: If the configuration cannot be written, or the folder
            holds a run already, finished or not.
    """
    config_to(config)
    if not Path(path).exists() or _is_empty(Path(path)):
        return
    folder = RunFolder(path)
    if folder.is_done:
        raise InvalidArgumentError(
            f"folder: must not hold a finished run, got {path}; choose another name"
        )
    if folder.path("manifest.json").exists():
        raise InvalidArgumentError(
            f"folder: must not hold a run that was interrupted, got {path}; go on with "
            f"it by resume({str(path)!r}), or choose another name"
        )


def read_run(
    path: str | Path, *, data: PeerData | None = None, model: FlatModel | None = None
) -> TrainedRun:
    """Read a run; see ``engine.run.load_run``.

    Args:
        path: The run folder.
        data: The peers' data, where they are not stored.
        model: The model, where it is not one of the zoo's.

    Returns:
        The run.

    Raises:
        StoreCorruptError: If the folder is damaged or was never finished.
        NoiseStreamChangedError: If keyed noise is not what it was.
    """
    folder = RunFolder(path)
    if not folder.is_done:
        raise StoreCorruptError(
            f"{folder.root}: must hold a finished run, got no done.json; the run was "
            f"interrupted, go on with: dfl-unlearn resume {folder.root}"
        )
    with understood(f"{folder.root}/manifest.json"):
        return _read(folder, data, model)


def _read(
    folder: RunFolder, data: PeerData | None, model: FlatModel | None
) -> TrainedRun:
    manifest, state = read_state(folder)
    check_noise(folder, manifest)
    data, model = data_and_model(manifest, data, model)
    if data.fingerprint() != manifest["data"]["fingerprint"]:
        raise StoreCorruptError(
            f"{folder.root}/manifest.json: data must have the fingerprint "
            f"{manifest['data']['fingerprint'][:16]}..., got "
            f"{data.fingerprint()[:16]}...; the data set's files or your arrays differ"
        )
    if tuple(state.params.shape) != (data.n, model.size):
        raise StoreCorruptError(
            f"{folder.root}/{FINAL}: params must have shape {(data.n, model.size)}, "
            f"got {tuple(state.params.shape)}; the file belongs to another run"
        )
    if (known := state_digest(state)) != manifest["state"]:
        raise StoreCorruptError(
            f"{folder.root}/{FINAL}: params must have the digest "
            f"{manifest['state'][:16]}..., got {known[:16]}...; the file was changed"
        )
    _validate.of_type(dict, info=manifest["info"])
    _validate.of_type(list, forgotten=manifest["forgotten"])
    config = config_from(manifest["training"])
    return TrainedRun(
        topology=read_topology(folder, manifest),
        data=data,
        model=model,
        config=config,
        state=state,
        record=read_record(folder, manifest["record"]),
        history=read_history(folder, config),
        ledger=read_ledger(folder, manifest, config),
        rng=RngTree(config.seed),
        digest=_digest(folder, manifest),
        folder=folder.root,
        info=manifest["info"],
        carried_out=carried_out_from(manifest),
        ahead=int(manifest.get("ahead", 0)),  # none in older folders
        personal=personal_of(folder, manifest, peers=data.n, size=model.size),
    )


def personal_of(
    folder: RunFolder, manifest: Mapping[str, Any], *, peers: int, size: int
) -> Personal:
    """Return the personal state that a run's folder keeps."""
    known = manifest.get("personal")  # none in older folders
    return read_personal(folder, PERSONAL, known, peers=peers, size=size)


def read_personal(
    folder: RunFolder, rel: str, digest: object, *, peers: int, size: int
) -> Personal:
    """Read personal state that was written with a digest.

    Args:
        folder: The run folder.
        rel: The file.
        digest: As noted elsewhere; None where there is none, whatever the file.
        peers: Number of peers N.
        size: Number of parameters P.

    Returns:
        Tensors by peer and name.

    Raises:
        StoreCorruptError: If they are not what was written.
    """
    if digest is None:
        return {}
    _validate.of_type(str, personal=digest)
    found = personal_from(folder.read_tensors(rel), peers, size)
    if (known := personal_digest(found)) != digest:
        raise StoreCorruptError(
            f"{folder.path(rel)}: must have the digest {_validate.show(digest)}, got "
            f"{known}; the file was changed, unlearn again"
        )
    return found


def check_noise(folder: RunFolder, manifest: Mapping[str, Any]) -> None:
    """Refuse to go on where keyed draws are not what they were.

    Args:
        folder: The run's folder.
        manifest: Its manifest.

    Raises:
        NoiseStreamChangedError: If the self-check gives other values.
    """
    then, now = tuple(manifest["noise_self_check"]), noise_self_check()
    if then != now:
        raise NoiseStreamChangedError(
            f"{folder.root}/manifest.json: keyed noise must start {then}, got {now}; "
            f"use the NumPy it was made with ({manifest['versions']['numpy']})"
        )


def data_and_model(
    manifest: Mapping[str, Any], data: PeerData | None, model: FlatModel | None
) -> tuple[PeerData, FlatModel]:
    """Return a run's data, forgotten rows marked, and its model.

    Args:
        manifest: Says how they are made again.
        data: Given where they cannot be.
        model: As ``data``.

    Returns:
        Both; the caller compares the fingerprint.

    Raises:
        InvalidArgumentError: If the model does not take the data.
        StoreCorruptError: If that is what the manifest says.
    """
    data = _build_data(manifest) if data is None else data
    given = model is not None
    model = _build_model(manifest) if model is None else model
    try:
        model.check_inputs(data.store.inputs)
    except InvalidArgumentError as error:
        if given:
            raise
        raise StoreCorruptError(
            f"manifest.json: model must fit the data, got one that does not ({error}); "
            "the file was changed"
        ) from error
    return _marked(data, manifest["data"]), model


def read_ledger(
    folder: RunFolder, manifest: Mapping[str, Any], config: SimulationConfig
) -> PrivacyLedger:
    """Return a run's ledger, bound to its file; it may have grown since it was noted.

    Args:
        folder: The run's folder.
        manifest: Notes the head.
        config: Gives the budget.

    Returns:
        The ledger.
    """
    return PrivacyLedger.load(
        folder.path(LEDGER),
        budget=config.privacy_budget,
        expected_head=noted_head(manifest),
    )


def _digest(folder: RunFolder, manifest: Mapping[str, Any]) -> str:
    """Return the digest of the state in force; a committed state's is its own."""
    final = manifest.get("final")  # none in older folders
    if final is not None and final["state"] == manifest["state"]:
        text = final["digest"]
    elif manifest["forgotten"]:
        text = manifest["state"]
    else:
        text = folder.read_json("done.json")["digest"]
    if not re.fullmatch("[0-9a-f]{64}", text):
        raise ValueError(f"the digest {_validate.show(text)}")
    return str(text)


def carried_out_from(manifest: Mapping[str, Any]) -> tuple[CarriedOut, ...]:
    """Return the requests that a run's state carries, oldest first."""
    return tuple(
        CarriedOut(
            request_id=past["request"],
            round=past["round"],
            rows={int(owner): rows for owner, rows in past["rows"].items()},
            pending={int(i): s for i, s in past.get("pending", {}).items()},
        )
        for past in manifest.get("carried_out", ())  # none in older folders
    )


def carried_out_to(past: CarriedOut) -> dict[str, Any]:
    """Return what the manifest says of a request that a state carries."""
    rows = {str(owner): number for owner, number in past.rows.items()}
    told = {"request": past.request_id, "round": past.round, "rows": rows}
    if past.pending:
        told["pending"] = {str(i): norm for i, norm in past.pending.items()}
    return told


def read_manifest(folder: RunFolder) -> dict[str, Any]:
    """Return a manifest as it was written, after a commit that was interrupted is done.

    ``next`` is there only while another process commits.

    Args:
        folder: A run folder.

    Returns:
        The manifest.

    Raises:
        StoreCorruptError: If it has another format.
    """
    settle_commit(folder)
    manifest: dict[str, Any] = folder.read_json("manifest.json")
    with understood(f"{folder.root}/manifest.json"):
        if manifest.get("format") != FORMAT:
            raise StoreCorruptError(
                f"{folder.root}/manifest.json: format must be {FORMAT}, got "
                f"{_validate.show(manifest.get('format'))}; read it with the version "
                "that wrote it"
            )
    return manifest


def read_state(folder: RunFolder) -> tuple[dict[str, Any], PeerState]:
    """Return the manifest in force and the state; see the module's docstring.

    Args:
        folder: A finished run's folder.

    Returns:
        The manifest, without ``next``, and the state.
    """
    manifest = read_manifest(folder)
    tensors = folder.read_tensors(FINAL)
    with understood(f"{folder.root}/manifest.json"):
        params = tensors.pop("params")
        coming = manifest.pop(NEXT, None)  # another process is committing
        if coming and coming["state"] == state_digest(PeerState(params=params)):
            manifest = coming
        _validate.integer(at_least=0, round=manifest["round"])
        state = PeerState(params=params, slots=tensors, round=manifest["round"])
    return manifest, state


def read_network(path: str | Path) -> tuple[Topology, SimulationConfig, int]:
    """Read how a run was trained, without its data, model and record.

    Args:
        path: The run folder.

    Returns:
        The network, the configuration, and the round of the present state.
    """
    folder = RunFolder(path)
    manifest, state = read_state(folder)
    with understood(f"{folder.root}/manifest.json"):
        config = config_from(manifest["training"])
        return read_topology(folder, manifest), config, state.round


def noted_head(known: Mapping[str, Any]) -> tuple[int, str] | None:
    """Return the ledger's head that a manifest or outcome noted, None in old ones.

    Args:
        known: The file's content.

    Returns:
        For ``PrivacyLedger.load(expected_head=...)``.
    """
    if known.get("ledger") is None:
        return None
    seq, digest = known["ledger"]
    _validate.integer(at_least=-1, ledger=seq)
    _validate.of_type(str, ledger=digest)
    return seq, digest


def begun_manifest(
    name: str,
    topology: Topology,
    data: PeerData,
    model: FlatModel,
    config: SimulationConfig,
) -> dict[str, Any]:
    """Return the manifest of a run that has trained no round yet.

    Args:
        name: The run's name.
        topology: The network.
        data: What each peer holds.
        model: The model.
        config: How it will be trained.

    Returns:
        JSON values.
    """
    return {
        "format": FORMAT,
        "run": name,
        "round": 0,
        "ahead": 0,
        "state": None,
        "training": config_to(config),
        "data": data_entry(data),
        "model": None if model.recipe is None else dict(model.recipe),
        "topology": {
            "name": topology.name,
            "stochastic": topology.stochastic,
            "directed": topology.directed,
            "edges": topology.edges.tolist(),
            "labels": list(topology.labels),
            "fingerprint": topology.fingerprint(),
        },
        "record": None,
        "forgotten": [],
        "carried_out": [],
        "ledger": None,
        "noise_self_check": list(noise_self_check()),
        "versions": versions(),
        "info": {},
    }


def data_entry(data: PeerData) -> dict[str, Any]:
    """Return what the manifest says of the data: recipe, forgotten rows, fingerprint.

    Args:
        data: What the peers hold.

    Returns:
        JSON values; rows are numbered as in the store.
    """
    vacated = [] if data.vacated is None else np.flatnonzero(data.vacated).tolist()
    return {
        "recipe": None if data.recipe is None else dict(data.recipe),
        "dropped": np.flatnonzero(~data.keep).tolist(),
        "vacated": vacated,
        "fingerprint": data.fingerprint(),
    }


def _marked(data: PeerData, known: Mapping[str, Any]) -> PeerData:
    """Return the data with exactly the stored rows marked as forgotten."""

    def mask(name: str) -> NDArray[np.bool_] | None:
        rows = np.array(known[name], dtype=np.int64)
        marked = np.zeros(len(data.store), dtype=np.bool_)
        marked[rows[rows < len(marked)]] = True  # other data: the fingerprint tells
        return marked if len(rows) else None

    return replace(data, dropped=mask("dropped"), vacated=mask("vacated"))


def _build_data(manifest: Mapping[str, Any]) -> PeerData:
    recipe = manifest["data"]["recipe"]
    if recipe is None:
        raise MissingInputError(
            "data: must be given for this run, got none; it was made from arrays that "
            "are not stored: load_run(path, data=PeerData.from_tensors(...))"
        )
    return PeerData.load(**recipe)


def _build_model(manifest: Mapping[str, Any]) -> FlatModel:
    recipe = manifest["model"]
    if recipe is None:
        raise MissingInputError(
            "model: must be given for this run, got none; it is not one of the zoo's: "
            "load_run(path, model=FlatModel.from_module(...))"
        )
    recipe = dict(recipe)
    recipe["input_shape"] = tuple(recipe["input_shape"])
    return models.build(recipe.pop("use"), **recipe)

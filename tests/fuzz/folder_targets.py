"""Targets that are whole run folders: finished ones, and one that was interrupted.

An input is a list of edits, so that it stays small and holds for later formats too::

    [{"file": "tiny/manifest.json", "json": [["set", ["round"], "-1"]]}]

``json`` has edits of ``mutate.edited``, of one line where ``line`` says which;
``bytes`` has ``[at, cut, put]``; ``gone`` removes the file; ``sealed`` makes the
checksum of a checkpoint's manifest right again.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random

from fuzz.harness import Bench, Misread, Target, touched, unwatched
from fuzz.mutate import edited, json_edits, steps
from fuzz.stored_targets import CRC, chained, committed_run, summed, tiny_run

from dfl_unlearn.engine.checkpoint import _text_hash
from dfl_unlearn.engine.config import ExecutionConfig
from dfl_unlearn.engine.run import TrainedRun, load_run, state_digest
from dfl_unlearn.engine.simulator import resume, simulate
from dfl_unlearn.engine.state import PeerState
from dfl_unlearn.engine.stored_influence import kept_influence
from dfl_unlearn.evaluation.audit_store import load_audits
from dfl_unlearn.results.ledgers import RunLedgers
from dfl_unlearn.unlearning.store import load_outcomes


class Folders:
    """Run folders below a scratch folder, put back after every input that wrote."""

    def __init__(self, scratch: Path, make: Callable[[Path], object]) -> None:
        self.kept = scratch / "kept"
        self.work = scratch / "work"
        make(self.kept)
        self.fresh()

    def fresh(self) -> None:
        """Make the working copy equal to what is kept."""
        shutil.rmtree(self.work, ignore_errors=True)
        shutil.copytree(self.kept, self.work)

    def restore(self, names: list[str]) -> None:
        """Put back the named files, or everything."""
        for name in names:
            (self.work / name).write_bytes((self.kept / name).read_bytes())
        if not names:
            self.fresh()

    def files(self) -> list[str]:
        """Return the paths of the files that a reader opens, below the folder."""
        skipped = ("lock", "config.toml", "config.json", "topology.graphml")
        found = [p for p in sorted(self.kept.rglob("*")) if p.is_file()]
        names = [str(p.relative_to(self.kept)) for p in found]
        return [n for n in names if "/tables/" not in n and not n.endswith(skipped)]


def finished_runs(root: Path) -> None:
    """Make a run with trials, and one in which a request was committed."""
    tiny_run(root)
    committed_run(root).rename(root / "committed")


def _tries(folders: Folders, opened: Callable[[Path, set[str]], object]) -> Bench:
    """Return inputs that edit the folders' files, and hand a folder to ``opened``."""
    names = folders.files()
    manifests = [n for n in names if n.endswith("manifest.json")]
    documents = [n for n in names if n.endswith(".json")]
    lined = [n for n in names if n.endswith(".jsonl")]

    def draw(rng: Random) -> bytes:
        pools = (manifests, documents, documents, lined, names)
        chosen = {rng.choice(rng.choice(pools))}
        if rng.random() < 0.2:
            chosen.add(rng.choice(names))
        edits = [_edit(name, folders.kept / name, rng) for name in sorted(chosen)]
        return json.dumps(edits).encode()

    def tried(data: bytes) -> object:
        edits = [e for e in json.loads(data) if (folders.kept / e["file"]).exists()]
        changed = {e["file"] for e in edits}
        tops = sorted({name.partition("/")[0] for name in changed})
        try:
            with unwatched():
                for edit in edits:
                    path, own = folders.work / edit["file"], folders.kept / edit["file"]
                    path.unlink(missing_ok=True)
                    if not edit.get("gone"):
                        path.write_bytes(damage(own.read_bytes(), edit))
            return [opened(folders.work / top, changed) for top in tops]
        finally:
            with unwatched():
                folders.restore([] if touched() else [e["file"] for e in edits])

    seeds = [json.dumps([{"file": name, "bytes": []}]).encode() for name in manifests]
    return Bench(seeds, draw, tried)


def _edit(name: str, path: Path, rng: Random) -> dict:
    data = path.read_bytes()
    edit: dict = {"file": name}
    lines = data.splitlines()
    if name.endswith(".json") and rng.random() < 0.85:
        edit["json"] = json_edits(json.loads(data), rng)
        if "/ckpt/" in name and rng.random() < 0.7:
            edit["sealed"] = True
    elif name.endswith(".jsonl") and lines and rng.random() < 0.85:
        edit["line"] = rng.randrange(len(lines))
        text = lines[edit["line"]]
        record = json.loads(text[9 if CRC.match(text) else 0 :])
        edit["json"] = json_edits(record, rng)
    elif rng.random() < 0.1:
        edit["gone"] = True
    else:
        edit["bytes"] = [_cut(data, rng) for _ in range(steps(rng))]
    return edit


def _cut(data: bytes, rng: Random) -> list:
    at = rng.randrange(len(data) + 1)
    byte = chr(rng.randrange(256))
    put = rng.choice(("", "", byte, "\x00" * 8, "\xff" * 8, "9" * 30))
    return [at, rng.choice((0, 1, 1, 8, 10**9)), put]


def damage(data: bytes, edit: dict) -> bytes:
    """Apply an edit to a file's content."""
    for at, cut, put in edit.get("bytes", ()):
        data = data[:at] + put.encode("latin-1") + data[at + cut :]
    if "json" not in edit:
        return data
    line = edit.get("line")
    if line is None:
        data = edited(json.loads(data), edit["json"], indent=2)
        return _sealed(data) if edit.get("sealed") else data
    lines = data.splitlines()
    if line >= len(lines):
        return data
    crc = CRC.match(lines[line]) is not None
    record = json.loads(lines[line][9 if crc else 0 :])
    record.pop("check", None)
    lines[line] = edited(record, edit["json"])
    if crc:
        lines[line] = b"00000000 " + lines[line]
        lines = summed(lines)
    elif "prev" in record:
        text = lines[line].replace(b'": ', b'":').replace(b', "', b',"')
        lines[line] = text[:-1] + b',"check":"0"}'
        lines = chained(lines)
    return b"".join(x + b"\n" for x in lines)


def _sealed(data: bytes) -> bytes:
    try:
        value = json.loads(data)
        value.pop("check", None)
        value["check"] = _text_hash(value)
        return json.dumps(value).encode()
    except Exception:
        return data


def _run(scratch: Path) -> Bench:
    clean: dict[str, list[str]] = {}

    def opened(folder: Path, changed: set[str]) -> object:
        run = load_run(folder)
        found = _states(run)
        known = clean.setdefault(folder.name, found)  # the seeds come first
        if found != known and all(n.endswith(".safetensors") for n in changed):
            raise Misread("changed arrays were read")
        audits = load_audits(run)
        ledgers = RunLedgers.of(folder)
        ledgers.verify()
        ledgers.rows()
        for title in ledgers.places:
            ledgers.what(title)
        kept_influence(run, 1)
        for outcome, _ in audits:
            outcome._repr_html_()
            list(outcome.messages.rows())
        run._repr_html_()
        return audits

    return _tries(Folders(scratch, finished_runs), opened)


def _states(run: TrainedRun) -> list[str]:
    """Digests of the states that claims rest on."""
    outcomes = sorted(load_outcomes(run), key=lambda o: o.protocol_name)
    found = [state_digest(run.state), *(state_digest(o.state) for o in outcomes)]
    if run.record is not None:
        states = sorted(run.record.checkpoints.items())
        found += [state_digest(PeerState(params=p)) for _, p in states]
        found.append(run.record.step_sizes.tobytes().hex())
    return found


class _PowerError(Exception):
    """The power went."""


class _Crash:
    def on_round(self, info) -> None:
        if info.round == 4:
            raise _PowerError


def _resume(scratch: Path) -> Bench:
    """A run with checkpoints of rounds 2 and 4 of 5: the clean run's bits, or an error.

    Damage in a checkpoint must not change what a resumed run ends with.
    """
    from dfl_unlearn.data.peers import PeerData
    from dfl_unlearn.engine.config import LocalSteps, SimulationConfig

    data = PeerData.load("gaussian-classes", peers=4, dataset_options={"dim": 3})
    config = SimulationConfig(rounds=5, local=LocalSteps(momentum=0.3))
    often = ExecutionConfig(checkpoint_every=2)
    clean = simulate("ring", data, "logistic", config).digest

    def make(root: Path) -> None:
        root.mkdir()
        try:
            simulate(
                "ring",
                data,
                "logistic",
                config,
                folder=root / "cut",
                execution=often,
                callbacks=[_Crash()],
            )
        except _PowerError:
            return

    def opened(folder: Path, changed: set[str]) -> object:
        run = resume(folder, rounds=5, execution=often)
        if run.digest != clean and "cut/manifest.json" not in changed:
            raise Misread(f"a resumed run ends otherwise: {run.digest}")
        return run

    return _tries(Folders(scratch, make), opened)


TARGETS = (
    Target("run", 0.3, _run),
    Target("resume", 0.4, _resume),
)

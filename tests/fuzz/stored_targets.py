"""Targets that the package writes itself: tensors, ledgers, results, run folders.

Damage behind a checksum never reaches the reader of what it protects; half of the
inputs therefore have their checksums made right again.
"""

import json
import re
import zlib
from hashlib import sha256
from pathlib import Path

import numpy as np
from fuzz.harness import Bench, Misread, Target
from fuzz.mutate import LETTERS, VALUES, edited, json_edits, mutated

from dfl_unlearn.accounting.certificate import Certificate
from dfl_unlearn.accounting.entries import START
from dfl_unlearn.accounting.ledger import PrivacyLedger
from dfl_unlearn.conduct import _known_rows
from dfl_unlearn.engine.config import SimulationConfig
from dfl_unlearn.engine.run import load_run
from dfl_unlearn.engine.stored_influence import keep_influence
from dfl_unlearn.engine.stored_parts import read_history
from dfl_unlearn.evaluation.audit_result import AuditClaim, AuditResult
from dfl_unlearn.evaluation.audit_store import save_audit
from dfl_unlearn.experiment import read_experiment, run_experiment
from dfl_unlearn.results.view import ResultsView
from dfl_unlearn.store.files import to_safetensors
from dfl_unlearn.store.folder import RunFolder
from dfl_unlearn.unlearning.store import commit_outcome, load_outcomes

WORDS = [
    t.encode() for t in (*LETTERS, *VALUES, "F32", "I64", "dtype", "shape", "check")
]
CRC = re.compile(rb"[0-9a-f]{8} ")

TINY = {
    "name": "tiny",
    "topology": {"use": "ring", "n": 4},
    "data": {"use": "gaussian-classes", "classes": 2, "dim": 3, "per_class": 20},
    "training": {"rounds": 3, "local": {"steps": 2, "learning_rate": 0.1}},
    "forget": [{"kind": "samples", "peer": 1, "fraction": 0.3}],
    "unlearning": [
        *({"use": n} for n in ("newton-fisher", "rr-du", "fine-tune", "retrain")),
        {"use": "at-peer", "reentry": "pinned"},  # leaves personal state
    ],
    "report": {"figures": [], "html": False},
}


def tiny_run(root: Path) -> Path:
    """Make a run folder with everything that one can hold, and return it."""
    run, outcomes, _ = run_experiment(read_experiment(TINY), root)
    assert run.folder is not None
    keep_influence(run, ResultsView.of(outcomes).influence())
    for outcome, audit in zip(
        load_outcomes(load_run(run.folder)), _audits(), strict=False
    ):
        save_audit(outcome, audit)
    return run.folder


def committed_run(root: Path) -> Path:
    """Make a run folder in which a request was committed and another one tried."""
    run, outcomes, _ = run_experiment(read_experiment(TINY), root)
    first = next(o for o in outcomes if o.protocol_name == "newton-fisher")
    from dfl_unlearn.data.forget import ForgetRequest
    from dfl_unlearn.unlearning.apply import unlearn

    after = commit_outcome(first)
    pinned = unlearn(
        after,
        ForgetRequest.samples(0, indices=[0]),
        outcomes[-1].protocol,
        folder=after.folder,
    )
    after = commit_outcome(pinned)
    unlearn(after, ForgetRequest.whole_peer(2), first.protocol, folder=after.folder)
    assert run.folder is not None
    return run.folder


def _audits() -> list[AuditResult]:
    claim = AuditClaim(
        epsilon=1.0, delta=1e-5, scope="release", noise_std=0.4, sensitivity=0.05
    )
    counts = {
        "claim": claim,
        "request_id": "r0",
        "statistic": "lr-projection",
        "gamma": 0.05,
        "threshold": 0.25,
        "noise_std_measured": 0.3991,
        "noise_samples": 64000,
        "shift_measured": 0.0131,
        "seeds": ("audit/0/reference", "audit/0/unlearned"),
        "versions": {"numpy": "2.4.0"},
    }
    many = {
        "replicas": (2000, 2000),
        "evaluated": (1000, 1000),
        "false_positives": 31,
        "false_negatives": 902,
    }
    control = AuditResult(**{**counts, **many, "false_negatives": 300, "label": "none"})
    one = {
        "test": "one-run",
        "replicas": (0, 1),
        "evaluated": (0, 1),
        "false_positives": 0,
        "false_negatives": 0,
        "canaries": 1000,
        "guesses": 100,
        "correct": 80,
    }
    return [
        AuditResult(**{**counts, **many, "negative_controls": (control,)}),
        AuditResult(**{**counts, **one}),
    ]


# --- tensors ------------------------------------------------------------------


def _safetensors(scratch: Path) -> Bench:
    folder = RunFolder.create(scratch, "tensors")
    path = folder.root / "state.safetensors"
    arrays = {
        "params": np.arange(12, dtype=np.float32).reshape(4, 3),
        "mask": np.array([True, False]),
        "scalar": np.float64(0.5).reshape(()),
        "none": np.zeros((0, 3), np.int64),
        "raw": np.arange(7, dtype=np.uint8),
    }
    seeds = [
        to_safetensors("a", arrays),
        to_safetensors("a", {"params": arrays["params"]}),
        to_safetensors("a", {}),
    ]
    heads = [json.loads(s[8 : 8 + int.from_bytes(s[:8], "little")]) for s in seeds]

    def draw(rng) -> bytes:
        at = rng.randrange(len(seeds))
        seed = seeds[at]
        if rng.random() < 0.5:
            return mutated(seed, seeds, rng, WORDS)
        body = seed[8 + int.from_bytes(seed[:8], "little") :]
        head = edited(heads[at], json_edits(heads[at], rng))
        head += b" " * (-len(head) % 8) if rng.random() < 0.7 else b""
        return len(head).to_bytes(8, "little") + head + body

    def tried(data: bytes) -> object:
        path.write_bytes(data)
        found = folder.read_tensors("state.safetensors")
        back = to_safetensors("again", found)
        for value in found.values():
            if value.numel():
                value.sum()  # reads every byte: a length that lies would crash here
        return back

    return Bench(seeds, draw, tried)


# --- ledgers and results ------------------------------------------------------


def chained(lines: list[bytes], first: int = 0) -> list[bytes]:
    """Return ledger lines with ``seq``, ``prev`` and ``check`` made right again."""
    prev, found = START, []
    for seq, line in enumerate(lines, start=first):
        body = line.rpartition(b',"check":"')[0] + b"}"
        head = b'{"v":1,"seq":'
        if body.startswith(head):
            rest = body.partition(b',"state":')[2]
            body = head + b'%d,"prev":"%s","state":' % (seq, prev.encode()) + rest
        whole = body[:-1] + b',"check":"%s"}' % sha256(body).hexdigest().encode()
        found.append(whole)
        prev = sha256(whole).hexdigest()
    return found


def summed(lines: list[bytes]) -> list[bytes]:
    """Return results lines with their CRC made right again."""
    return [b"%08x %s" % (zlib.crc32(line[9:]), line[9:]) for line in lines]


def _ledger(scratch: Path) -> Bench:
    run = tiny_run(scratch)
    path = scratch / "ledger.jsonl"
    seeds = [
        file.read_bytes()
        for file in sorted(run.glob("outcomes/*/ledger.jsonl"))
        if file.stat().st_size
    ]
    seeds.append(b"")
    # Short ones are damaged in every part, not in the numbers of a curve alone.
    lines = [line for seed in seeds for line in seed.splitlines()]

    def draw(rng) -> bytes:
        if rng.random() < 0.3:
            return mutated(rng.choice(seeds), seeds, rng, WORDS)
        chosen = [rng.choice(lines) for _ in range(rng.randrange(1, 4))]
        if rng.random() < 0.5:
            chosen = chosen[:1]
        at = rng.randrange(len(chosen))
        if rng.random() < 0.8:
            record = json.loads(chosen[at])
            record.pop("check")
            where = {k: v for k, v in record.items() if k not in ("v", "seq", "prev")}
            edits = json_edits(where, rng)
            text = edited(record, edits)
            text = text.replace(b'": ', b'":').replace(b', "', b',"')
            chosen[at] = text[:-1] + b',"check":"0"}'
        else:
            chosen[at] = mutated(chosen[at], lines, rng, WORDS).replace(b"\n", b"")
        return b"".join(line + b"\n" for line in chained(chosen))

    def tried(data: bytes) -> object:
        path.write_bytes(data)
        book = PrivacyLedger.load(path)
        book.verify()
        rows = book.table()
        str(book)
        for row in rows:
            if not row.epsilon >= 0:
                raise Misread(f"an epsilon is not >= 0: {row}")
        return book

    return Bench(seeds, draw, tried)


def _results(scratch: Path) -> Bench:
    run = tiny_run(scratch)
    folder = RunFolder.create(scratch, "results")
    path = folder.root / "results.jsonl"
    lines = (run / "results.jsonl").read_bytes().splitlines()
    rounds = [line for line in lines if b'"round"' in line[:200] and b'"loss"' in line]
    few = [*rounds, lines[-1], lines[len(lines) // 2]]
    seeds = [b"".join(line + b"\n" for line in part) for part in (few, rounds, [])]

    def draw(rng) -> bytes:
        if rng.random() < 0.3:
            return mutated(rng.choice(seeds), seeds, rng, WORDS)
        chosen = rng.sample(few, rng.randrange(1, len(few) + 1))
        at = rng.randrange(len(chosen))
        if rng.random() < 0.8:
            record = json.loads(chosen[at][9:])
            chosen[at] = b"00000000 " + edited(record, json_edits(record, rng))
        else:
            chosen[at] = mutated(chosen[at], few, rng, WORDS).replace(b"\n", b"")
        return b"".join(line + b"\n" for line in summed(chosen))

    def tried(data: bytes) -> object:
        for torn in folder.root.glob("results.torn-*"):
            torn.unlink()
        path.write_bytes(data)
        fresh = RunFolder(folder.root)
        read_history(fresh, SimulationConfig(rounds=3))
        _known_rows(fresh)
        return fresh

    return Bench(seeds, draw, tried)


def _certificate(scratch: Path) -> Bench:
    run = tiny_run(scratch)
    files = sorted(run.glob("outcomes/*/certificate.json"))
    return _documents(
        [f.read_bytes() for f in files],
        Certificate.from_json,
        lambda found: [str(found), found._repr_html_()],
    )


def _audit(scratch: Path) -> Bench:
    texts = [a.to_json().encode() for a in _audits()]
    return _documents(texts, AuditResult.from_json, lambda found: [str(found)])


def _documents(seeds, read, shown) -> Bench:
    tables = [json.loads(seed) for seed in seeds]

    def draw(rng) -> bytes:
        if rng.random() < 0.3:
            return mutated(rng.choice(seeds), seeds, rng, WORDS)
        table = rng.choice(tables)
        return edited(table, json_edits(table, rng))

    def tried(data: bytes) -> object:
        try:
            text = data.decode()
        except UnicodeDecodeError:
            text = data.decode("latin-1")
        found = read(text)
        shown(found)
        if read(found.to_json()) != found:
            raise Misread(f"its own JSON reads otherwise: {found}")
        return found

    return Bench(seeds, draw, tried)


TARGETS = (
    Target("safetensors", 10, _safetensors),
    Target("ledger", 5, _ledger),
    Target("results", 8, _results),
    Target("certificate", 10, _certificate),
    Target("audit", 6, _audit),
)

"""The target ``sweep``: a file with axes, and words that make more of them."""

from pathlib import Path

from fuzz.harness import Bench, Target
from fuzz.mutate import LETTERS, VALUES, damaged

from dfl_unlearn.sweeps import load_sweep
from dfl_unlearn.sweeps.folder import plan_of

_MOST = 40
_BETWEEN = b"\n---\n"
_BASE = b"""\
name = "tiny"
[topology]
use = "ring"
n = 4
[data]
use = "gaussian-classes"
[training]
rounds = 6
[[forget]]
kind = "samples"
peer = 1
fraction = 0.5
[[unlearning]]
use = "newton-fisher"
[[unlearning]]
use = "fine-tune"
rounds = 2
"""
_GRID = b"""\
[sweep]
seeds = [0, 1]
[sweep.axes]
"topology" = [{ use = "ring", n = 4 }, { use = "torus", n = 9 }]
"unlearning.0.epsilon,unlearning.1.epsilon" = [0.5, 1.0]
"""
_DRAWS = b"""\
[sweep]
mode = "random"
samples = 3
[sweep.axes]
training.local.learning_rate = { low = 0.01, high = 1.0, log = true }
training.rounds = { low = 2, high = 9 }
topology.use = ["ring", "complete"]
"""
_ZIP = b"""\
[sweep]
mode = "zip"
[sweep.axes]
"topology.n" = [4, 5]
"training.rounds" = [2, 3]
"""
_WORDS = (
    b"topology.n=3,4",
    b'data.partition={use="iid"},{use="dirichlet",alpha=0.5}',
    b"topology.n,training.rounds=5,6\ntopology.use=ring",
    b"unlearning=[],[{use='retrain'}]",
    b"sweep.seeds=[3]\nforget.0.fraction=0.1,0.2",
)
_KEYS = ("sweep", "axes", "seeds", "mode", "samples", "low", "high", "log", "zip")


def _sweep(scratch: Path) -> Bench:
    path = scratch / "sweep.toml"
    files = [_BASE + part for part in (_GRID, _DRAWS, _ZIP, b"")]
    seeds = [w + _BETWEEN + file for w in (b"", *_WORDS) for file in files]
    extra = ('"', "=", "[", "]", "{", "}", ",", ".", "\n---\n")
    words = [t.encode() for t in (*_KEYS, *extra, *LETTERS, *VALUES)]

    def tried(data: bytes) -> object:
        typed, _, text = data.partition(_BETWEEN)
        path.write_bytes(text)
        given = [w for w in typed.decode("utf-8", "surrogateescape").split("\n") if w]
        sweep = load_sweep(path, given)
        if (sweep.samples or 0) > _MOST:
            return sweep
        if len(sweep.points()) * len(sweep.seeds) > _MOST:
            return sweep
        return plan_of(sweep, sweep.cases())

    return Bench(seeds, damaged(seeds, words), tried)


TARGETS = (Target("sweep", 6, _sweep),)

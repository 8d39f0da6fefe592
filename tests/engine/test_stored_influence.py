"""Exact traces in a run folder: equal when read, and never of another run."""

import numpy as np
import pytest
from networks import blobs

from dfl_unlearn import load_run
from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.engine.config import SimulationConfig
from dfl_unlearn.engine.influence import best_influence, track_influence
from dfl_unlearn.engine.simulator import simulate
from dfl_unlearn.engine.stored_influence import keep_influence, kept_influence
from dfl_unlearn.errors import InvalidArgumentError, StoreCorruptError
from dfl_unlearn.results.view import ResultsView
from dfl_unlearn.store.folder import RunFolder
from dfl_unlearn.unlearning.apply import unlearn
from dfl_unlearn.unlearning.store import commit_outcome

DATA = blobs([5, 6, 4, 5])


@pytest.fixture
def run(tmp_path):
    return simulate("ring", DATA, "logistic", SimulationConfig(rounds=6)).save(
        tmp_path / "a"
    )


@pytest.mark.parametrize("vectors", [True, False])
def test_a_kept_trace_is_read_as_it_was(run, vectors):
    trace = track_influence(run, 2, vectors=vectors)
    place = keep_influence(run, trace)
    assert place.name == "peer-2.exact.safetensors"
    read = kept_influence(load_run(run.folder, data=DATA), 2)
    for name in ("rounds", "norms", "hops", "vacuous"):
        np.testing.assert_array_equal(getattr(read, name), getattr(trace, name))
    if vectors:
        np.testing.assert_array_equal(read.vectors, trace.vectors)
    else:
        assert read.vectors is None
    assert kept_influence(run, 1) is None


def test_a_view_reads_what_was_kept(run):
    trace = track_influence(run, 0)
    trace.norms[:] = 7.0  # no replay gives this
    keep_influence(run, trace)
    assert (ResultsView.of(run).influence().norms == 7).all()
    assert (best_influence(run, 1).norms[-1] != 7).all()


def test_a_trace_of_another_state_is_not_taken(run):
    keep_influence(run, track_influence(run, 0))
    assert kept_influence(run.replaced(digest="00" * 32), 0) is None


def test_a_commit_removes_traces_made_with_the_forgotten_data(run):
    place = keep_influence(run, track_influence(run, 1))
    request = ForgetRequest.samples(peer=1, indices=[0])
    after = commit_outcome(unlearn(run, request, "retrain", folder=run.folder))
    assert not place.exists()
    assert kept_influence(after, 1) is None


def test_a_run_in_memory_has_no_place_and_a_damaged_file_is_named(run):
    bare = simulate("ring", DATA, "logistic", SimulationConfig(rounds=6))
    with pytest.raises(InvalidArgumentError, match="a run in memory"):
        keep_influence(bare, track_influence(bare, 0))
    assert kept_influence(bare, 0) is None
    RunFolder(run.folder).write_tensors(
        "influence/peer-0.exact.safetensors", {"rounds": np.arange(3)}
    )
    with pytest.raises(StoreCorruptError, match="got rounds; delete it"):
        kept_influence(run, 0)

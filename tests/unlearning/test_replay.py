"""A committed request carried out again: the same bits, or an error with the reason."""

import shutil
import warnings

import pytest
import torch
from networks import blobs

from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.engine.config import LocalSteps, SimulationConfig
from dfl_unlearn.engine.simulator import simulate
from dfl_unlearn.errors import (
    InputFileError,
    ReplayDivergedError,
    StoreCorruptError,
)
from dfl_unlearn.rng import RngTree
from dfl_unlearn.unlearning.apply import unlearn
from dfl_unlearn.unlearning.protocols.fine_tune import FineTune
from dfl_unlearn.unlearning.protocols.newton_fisher import NewtonFisher
from dfl_unlearn.unlearning.protocols.retrain import Retrain
from dfl_unlearn.unlearning.protocols.rr_du import RrDu
from dfl_unlearn.unlearning.replay import committed_requests, replay_request
from dfl_unlearn.unlearning.store import commit_outcome

DATA = blobs([12, 7, 9, 10])
CONFIG = SimulationConfig(rounds=6, local=LocalSteps(batch_size=5), evaluate_every=2)
REQUEST = ForgetRequest.samples(peer=1, indices=[0, 4])
PROTOCOLS = {
    "newton-fisher": NewtonFisher(),
    "secure": NewtonFisher(noise_mode="secure"),
    "fine-tune": FineTune(rounds=3),
    "rr-du": RrDu(hops=12, public_radius=5.0),
    "retrain": Retrain(),
}


def trained(folder=None):
    return simulate("ring", DATA, "logistic", CONFIG, folder=folder)


def committed(run, protocol, request=REQUEST):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        outcome = unlearn(run, request, protocol, folder=run.folder)
    return outcome, commit_outcome(outcome)


def everything(folder):
    return {
        p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != "lock"
    }


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_replay_has_the_same_bits_charges_and_releases(tmp_path, name):
    outcome, after = committed(trained(tmp_path / "a"), PROTOCOLS[name])
    before = everything(tmp_path / "a")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again = replay_request(trained(), tmp_path / "a", "r0")
    assert torch.equal(again.state.params, outcome.state.params)
    assert again.ledger.entries == outcome.ledger.entries
    assert again.ledger.path is None
    assert again.ledger.ahead == 0
    run = again.as_run()
    assert run.data.fingerprint() == after.data.fingerprint()
    assert run.requests == 1
    assert everything(tmp_path / "a") == before


def test_requests_in_a_row_are_replayed_in_a_row(tmp_path):
    _, after = committed(trained(tmp_path / "a"), "newton-fisher")
    second = ForgetRequest.samples(peer=2, indices=[3])
    outcome, _ = committed(after, NewtonFisher(epsilon=0.5), second)
    assert [x.request_id for x in committed_requests(tmp_path / "a")] == ["r0", "r1"]
    run = replay_request(trained(), tmp_path / "a", "r0").as_run()
    again = replay_request(run, tmp_path / "a", "r1")
    assert torch.equal(again.state.params, outcome.state.params)
    assert again.ledger.entries == outcome.ledger.entries
    with pytest.raises(ReplayDivergedError, match="the state that r0 was on must have"):
        replay_request(run, tmp_path / "a", "r0")
    with pytest.raises(InputFileError, match="'r7', got none"):
        replay_request(run, tmp_path / "a", "r7")


def test_other_noise_another_charge_or_another_release_is_no_replay(
    tmp_path, monkeypatch
):
    committed(trained(tmp_path / "a"), "newton-fisher")
    base = trained()
    normal = RngTree.normal
    with monkeypatch.context() as patch:
        patch.setattr(
            RngTree, "normal", lambda *args, **more: normal(*args, **more) + 1e-6
        )
        with pytest.raises(ReplayDivergedError, match=r"bytes .* that were noted"):
            replay_request(base, tmp_path / "a", "r0")
    place = tmp_path / "a/outcomes/r0.newton-fisher/outcome.json"
    text = place.read_text()
    place.write_text(text.replace('"epsilon": 1.0', '"epsilon": 0.9'))
    with pytest.raises(ReplayDivergedError, match="must be charged as in the attempt"):
        replay_request(base, tmp_path / "a", "r0")
    place.write_text(text.replace('"recovery_rounds": 1', '"recovery_rounds": 2'))
    with pytest.raises(ReplayDivergedError, match="r0: the result must have"):
        replay_request(base, tmp_path / "a", "r0")


def test_a_kept_release_that_was_changed_is_noticed(tmp_path):
    committed(trained(tmp_path / "a"), PROTOCOLS["secure"])
    copy = tmp_path / "b"
    shutil.copytree(tmp_path / "a", copy)
    place = copy / "outcomes/r0.newton-fisher/released-0.safetensors"
    content = bytearray(place.read_bytes())
    content[-1] ^= 1
    place.write_bytes(bytes(content))
    with pytest.raises(StoreCorruptError, match="the file was changed"):
        replay_request(trained(), copy, "r0")

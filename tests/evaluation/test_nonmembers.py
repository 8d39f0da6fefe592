from dataclasses import replace

import numpy as np
import pytest
from evaluation.outcomes import linear_model, outcome_of, random_outcome

from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.data.peers import PeerData
from dfl_unlearn.errors import MissingInputError
from dfl_unlearn.evaluation import nonmembers
from dfl_unlearn.evaluation.nonmembers import matched_rows, thinned
from dfl_unlearn.evaluation.view import EvaluationView


def labelled_view(forget, keep, test, **options):
    """Rows with a number as their only feature: 100 + k are test rows."""
    labels = np.array([*forget, *keep])
    rows = np.arange(len(labels), dtype=np.float64)[:, None]
    tests = 100.0 + np.arange(len(test))[:, None]
    data = PeerData.from_tensors(
        [(rows, labels)], (tests, np.array(test, dtype=np.int64)), num_classes=3
    )
    states = np.zeros((3, 1, 6))
    request = ForgetRequest.samples(peer=0, indices=range(len(forget)), **options)
    return EvaluationView.of(outcome_of(data, linear_model(data), *states, request))


def counts(batch):
    return np.bincount(batch.labels.numpy(), minlength=3).tolist()


def test_nonmembers_are_test_rows_with_the_mix_of_the_forgotten():
    view = labelled_view([0, 0, 1], [2, 2], [0] * 9 + [1] * 5 + [2] * 50)
    rows = matched_rows(view)
    assert counts(rows.members) == [2, 1, 0]
    assert rows.times == 4  # 9 // 2 of class 0 and 5 of class 1
    assert counts(rows.others) == [8, 4, 0]
    assert (rows.others.inputs >= 100).all()
    assert len(np.unique(rows.others.inputs.numpy())) == 12


def test_too_few_test_rows_shrink_both_sides_alike():
    rows = matched_rows(labelled_view([0, 0, 0, 1, 2], [1], [0, 0, 1, 1]))
    assert counts(rows.members) == counts(rows.others) == [2, 1, 0]


def test_no_test_row_of_a_forgotten_class_is_refused():
    with pytest.raises(MissingInputError, match="none of 0, 1"):
        matched_rows(labelled_view([0, 1], [2], [2, 2]))


def test_every_undersampling_has_the_members_mix():
    rows = matched_rows(labelled_view([0, 0, 1], [2], [0] * 20 + [1] * 20))
    drawn = [rows.undersampled(rows.generator(k)) for k in range(4)]
    for index in drawn:
        assert np.bincount(rows.others.labels.numpy()[index]).tolist() == [2, 1]
    assert len({tuple(index) for index in drawn}) > 1
    again = rows.undersampled(rows.generator(2))
    np.testing.assert_array_equal(again, drawn[2])


def test_rows_are_drawn_by_the_request_and_equal_in_all_worlds():
    def drawn(request_id, world="after"):
        view = labelled_view([0] * 5, [1], [0] * 40, request_id=request_id)
        return matched_rows(view.at(world)).others.inputs[:, 0].tolist()

    view = labelled_view([0] * 3, [1], [0] * 4)
    assert matched_rows(view).times == 1
    assert drawn("a") == drawn("a", "before") == drawn("a", "reference")
    one = labelled_view([0] * 9, [1], [0] * 17, request_id="a")
    other = labelled_view([0] * 9, [1], [0] * 17, request_id="b")
    found = [matched_rows(v).others.inputs[:, 0].tolist() for v in (one, other)]
    assert found[0] != found[1]


def test_a_class_keeps_a_row_however_many_go(monkeypatch):
    monkeypatch.setattr(nonmembers, "ROWS", 10)
    rows = matched_rows(labelled_view([0] * 60 + [1], [2], [0] * 60 + [1]))
    assert counts(rows.members) == counts(rows.others) == [9, 1, 0]


def test_a_whole_peer_is_compared_with_rows_of_nobody():
    view = EvaluationView.of(random_outcome())
    request = ForgetRequest.whole_peer(1).resolve(view.data)
    rows = matched_rows(replace(view, request=request))
    stored = {tuple(row) for row in view.data.store.inputs.tolist()}
    assert len(rows.members) == len(rows.others) > 0
    assert not stored & {tuple(row) for row in rows.others.inputs.tolist()}


def test_thinned_rows_are_evenly_spaced():
    batch = labelled_view([0], [1] * 9, [0]).data.store
    assert thinned(batch, 5).inputs[:, 0].tolist() == [0, 2, 4, 6, 8]
    assert thinned(batch, 10) is batch

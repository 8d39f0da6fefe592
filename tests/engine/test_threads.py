"""A block with a fixed number of threads, also inside another one."""

import pytest
import torch

from dfl_unlearn.engine.threads import limited_threads


def test_numbers_come_back_also_after_an_error():
    before = torch.get_num_threads()
    with limited_threads(2):
        with limited_threads(2):
            assert torch.get_num_threads() == 2
        with limited_threads(1):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2

    def failing():
        with limited_threads(2):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing()
    assert torch.get_num_threads() == before


def test_a_number_changed_inside_is_set_again():
    with limited_threads(1):
        torch.set_num_threads(2)
        with limited_threads(1):
            assert torch.get_num_threads() == 1

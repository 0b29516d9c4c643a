"""Checks of arrays and tensors."""

import numpy as np
import pytest
import torch

from ppgen import data


@pytest.mark.parametrize("make", [np.asarray, torch.as_tensor])
class TestCheck:
    def test_real_numbers_are_accepted(self, make):
        for x in ([[1.0, 2.0]], [1], [[True]]):
            data.check(make(np.asarray(x)))

    def test_values_that_are_not_finite_are_counted(self, make):
        x = np.zeros((6, 3))
        x[2, 1] = x[4, 1] = np.nan
        x[4, 2] = -np.inf
        message = (
            r"^mine: 3 of 18 values, in 2 of 6 rows \(the first is row 2\), columns 1, 2, are not finite "
            r"\(2 NaN, 1 infinite\); drop those rows or fill them$"
        )
        with pytest.raises(ValueError, match=message):
            data.check(make(x), name="mine")
        with pytest.raises(ValueError, match="columns 'b', 'c', are"):
            data.check(make(x), columns=("a", "b", "c"))
        with pytest.raises(ValueError, match=r"positions \(0, 1\), \(0, 2\), are"):
            data.check(make(x.reshape(3, 2, 3)))
        with pytest.raises(ValueError, match="the only column, are"):
            data.check(make(x[:, 1]))
        with pytest.raises(ValueError, match=r"columns 0, 1, 2, 3, 4 and 7 more, are"):
            data.check(make(np.full((1, 12), np.nan)))

    @pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0,), ()])
    def test_no_rows_are_refused(self, make, shape):
        with pytest.raises(ValueError, match="at least one row of values, got shape"):
            data.check(make(np.zeros(shape)))

    def test_complex_numbers_are_refused(self, make):
        with pytest.raises(TypeError, match=r"expected real numbers, got dtype .*complex"):
            data.check(make(np.ones(2, np.complex64)))


@pytest.mark.parametrize(("x", "got"), [([[1.0]], "got list"), (np.array(["a"]), "got dtype <U1"), (None, "got None")])
def test_other_types_are_refused(x, got):
    with pytest.raises(TypeError, match=f"mine: expected .*{got}"):
        data.check(x, name="mine")

"""The scaler: its inverse, log determinant and state, and errors."""

import json

import numpy as np
import pytest
from data_files import same

from ppgen import data


@pytest.mark.parametrize("shape", [(50, 3), (40, 1, 2, 2), (30,)])
def test_standardization_inverse_jacobian_and_state(shape):
    x = np.random.default_rng(0).normal(5, 3, shape)
    scaler = data.Scaler.fit(x)
    z = scaler.transform(x)
    assert np.allclose(z.mean(axis=0), 0, atol=1e-12)
    assert np.allclose(z.std(axis=0), 1)
    assert np.allclose(scaler.inverse(z), x)
    # the map is affine, so that differences along unit vectors give its Jacobian
    size = int(np.prod(shape[1:]))
    at_zero, at_units = (
        scaler.transform(points.reshape(-1, *shape[1:])).reshape(-1, size)
        for points in (np.zeros((1, size)), np.eye(size))
    )
    sign, log_det = np.linalg.slogdet(at_units - at_zero)
    assert sign == 1
    assert np.isclose(scaler.log_det(), log_det)
    restored = data.Scaler.from_state(json.loads(json.dumps(scaler.state())))
    assert same(restored.transform(x), z)
    assert scaler.transform(x.astype(np.float32)).dtype == np.float32
    assert scaler.transform(x.astype(np.int64)).dtype == np.float64


def test_a_large_offset_does_not_lose_precision():
    x = (1.7e9 + np.arange(100.0))[:, None]
    z = data.Scaler.fit(x).transform(x)
    assert np.allclose(np.diff(z[:, 0]), 1 / np.arange(100).std())


def test_the_identity_has_a_short_state():
    scaler = data.Scaler.identity((1, 8, 8))
    x = np.random.default_rng(0).normal(size=(5, 1, 8, 8))
    assert scaler.state() == {"shape": [1, 8, 8], "shift": 0.0, "scale": 1.0}
    assert same(data.Scaler.from_state(scaler.state()).transform(x), x)
    assert scaler.log_det() == 0


def test_constant_columns_are_not_scaled_with_a_warning():
    x = np.column_stack([np.full(9, 0.1), np.arange(9.0), np.full(9, 3)])
    with pytest.warns(UserWarning, match=r"not scaled: columns 'a', 'c'$"):
        scaler = data.Scaler.fit(x, columns=("a", "b", "c"))
    assert same(scaler.scale[[0, 2]], [1, 1])
    with pytest.warns(UserWarning, match="the only column"):
        data.Scaler.fit(np.ones(4))


def test_bad_scalers_and_data_are_refused():
    with pytest.raises(ValueError, match=r"the same shape, got \(2,\) and \(3,\)"):
        data.Scaler(np.zeros(2), np.ones(3))
    with pytest.raises(ValueError, match="positive scale, got another in columns 1, 2"):
        data.Scaler(np.array([0, np.nan, 0]), np.array([1.0, 1.0, 0.0]))
    with pytest.raises(ValueError, match="got another in column 0"):
        data.Scaler.fit(np.array([[1e300], [-1e300]]))
    with pytest.raises(ValueError, match=r"expected rows of shape \(2,\), got an array of shape \(4, 3\)"):
        data.Scaler(np.zeros(2), np.ones(2)).transform(np.zeros((4, 3)))

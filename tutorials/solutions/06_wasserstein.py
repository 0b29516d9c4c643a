"""Solutions of the exercises of "What does a Wasserstein critic measure?"."""

import numpy as np
import torch
from scipy.optimize import linprog
from scipy.spatial.distance import cdist

from ppgen import metrics as m


def solve() -> tuple[np.ndarray, ...]:
    """Two samples, their distances, the best plan (n, m), and the best price at all rows."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((12, 2)), 1 + rng.standard_normal((12, 2))
    cost = cdist(x, y)
    n, k = cost.shape
    sums = np.vstack([np.kron(np.eye(n), np.ones(k)), np.kron(np.ones(n), np.eye(k))])
    plan = linprog(cost.ravel(), A_eq=sums, b_eq=np.r_[np.full(n, 1 / n), np.full(k, 1 / k)])
    # the dual in one function v on all rows: v(a) - v(b) <= |a - b|
    rows = np.vstack([x, y])
    apart = cdist(rows, rows)
    first, second = np.nonzero(~np.eye(n + k, dtype=bool))
    rises = np.zeros((len(first), n + k))
    rises[np.arange(len(first)), first], rises[np.arange(len(first)), second] = 1, -1
    gain = np.r_[np.full(n, 1 / n), np.full(k, -1 / k)]
    price = linprog(-gain, A_ub=rises, b_ub=apart[first, second], bounds=(None, None))
    assert plan.success
    assert price.success
    return x, y, cost, plan.x.reshape(n, k), price.x


def exercise_1() -> None:
    """The plan costs what the price gains."""
    x, y, cost, plan, v = solve()
    value = (plan * cost).sum()
    assert np.isclose(v[: len(x)].mean() - v[len(x) :].mean(), value)
    assert np.isclose(float(m.Wasserstein(p=1)(torch.as_tensor(x), torch.as_tensor(y))), value)
    rows = np.vstack([x, y])
    assert (np.abs(v[:, None] - v) <= cdist(rows, rows) + 1e-9).all()


def exercise_2() -> None:
    """Where the plan moves mass, the inequality v(x) - v(y) <= |x - y| is an equality."""
    x, _, cost, plan, v = solve()
    falls = v[: len(x), None] - v[None, len(x) :]
    moved = plan > 1e-9
    assert np.allclose(falls[moved], cost[moved])
    assert (falls < cost - 1e-6)[~moved].any()


def exercise_3() -> None:
    """Peaks of a s - w (|a| - 1)^2, and of a s - w max(0, |a| - 1)^2."""
    s, w = 4.0, 10.0
    a = np.linspace(-2, 2, 40_001)

    def peaks(score):
        inner = score[1:-1]
        return a[1:-1][(inner > score[:-2]) & (inner > score[2:])]

    two_sided = a * s - w * (np.abs(a) - 1) ** 2
    assert np.allclose(peaks(two_sided), [-1 + s / (2 * w), 1 + s / (2 * w)], atol=1e-3)
    one_sided = a * s - w * np.maximum(0, np.abs(a) - 1) ** 2
    assert np.allclose(peaks(one_sided), [1 + s / (2 * w)], atol=1e-3)

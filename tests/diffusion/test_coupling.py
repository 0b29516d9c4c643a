"""Couplings: marginals, the minimal cost, and conditions."""

import itertools

import ot
import pytest
import torch
from torch import Tensor

from ppgen.diffusion import COUPLINGS, couple
from ppgen.diffusion.coupling import _sinkhorn, entropic_plan
from ppgen.metrics.metric import squared_distances


def batch(n: int = 12, width: int = 2) -> tuple[Tensor, Tensor]:
    return torch.randn(n, width), 2 * torch.randn(n, width) + 1


def cost_of(z: Tensor, x: Tensor, index: Tensor) -> float:
    return float((z[index] - x).square().flatten(1).sum(1).mean())


@pytest.mark.parametrize("coupling", COUPLINGS)
@pytest.mark.parametrize("shape", [(2,), (1, 3, 3)])
def test_every_row_of_data_gets_a_row_of_the_base(coupling, shape):
    index = couple(torch.randn(7, *shape, dtype=torch.float64), torch.randn(7, *shape).double(), coupling=coupling)
    assert index.shape == (7,)
    assert index.dtype == torch.long
    assert ((index >= 0) & (index < 7)).all()


@pytest.mark.parametrize("coupling", ["independent", "exact"])
def test_a_permutation_has_both_marginals(coupling):
    z, x = batch(50)
    assert couple(z, x, coupling=coupling).sort().values.tolist() == list(range(50))


@pytest.mark.parametrize("epsilon", [1.0, 5.0, 50.0])
def test_the_entropic_plan_agrees_with_pot(epsilon):
    cost = squared_distances(*batch(40))
    weights = torch.full((40,), 1 / 40, dtype=torch.float64).numpy()
    expected = 40 * torch.as_tensor(ot.sinkhorn(weights, weights, cost.double().numpy(), epsilon, stopThr=1e-10))
    torch.testing.assert_close(entropic_plan(cost, torch.tensor(epsilon)), expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize(("epsilon", "error"), [(0.02, 0.2), (0.5, 0.01), (50.0, 1e-6)])
def test_the_entropic_plan_has_both_marginals(epsilon, error):
    plan = entropic_plan(squared_distances(*batch(64)), torch.tensor(epsilon))
    torch.testing.assert_close(plan.sum(0), torch.ones(64).double())
    assert (plan.sum(1) - 1).abs().max() < error


def test_the_entropic_plan_is_finite_for_costs_of_different_magnitudes():
    z, x = batch(20)
    plan = entropic_plan(squared_distances(z, 1000 * x), torch.tensor(1e-3))
    assert plan.isfinite().all()
    torch.testing.assert_close(plan.sum(0), torch.ones(20).double())


def test_sinkhorn_samples_from_its_plan():
    """The uniform numbers are a grid on [0, 1], so that each count is exact up to one."""
    cost, counts = squared_distances(*batch(6)), torch.zeros(6, 6)
    for u in (torch.arange(100) + 0.5) / 100:
        counts[_sinkhorn(cost, 2.0, u.expand(6)), torch.arange(6)] += 1
    assert (counts / 100 - entropic_plan(cost, torch.tensor(2.0))).abs().max() < 0.011


def test_sinkhorn_is_exact_for_small_epsilon():
    z, x = batch(8)
    assert torch.equal(couple(z, x, coupling="sinkhorn", epsilon=1e-3), couple(z, x, coupling="exact"))


@pytest.mark.parametrize("seed", range(3))
def test_exact_minimizes_the_cost_over_permutations(seed):
    torch.manual_seed(seed)
    z, x = batch(4)
    minimum = min(cost_of(z, x, torch.tensor(order)) for order in itertools.permutations(range(4)))
    assert cost_of(z, x, couple(z, x)) == pytest.approx(minimum)


def test_exact_has_the_cost_of_the_plan_of_pot():
    z, x = batch(100)
    assert cost_of(z, x, couple(z, x)) == pytest.approx(ot.emd2([], [], squared_distances(z, x).double().numpy()))


def labeled(n: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A base independent of its labels, data that are separated by label, and labels of both."""
    y = torch.randint(3, (n,))
    return torch.randn(n, 2), 4.0 * y[:, None] + torch.randn(n, 2), y[torch.randperm(n)], y


@pytest.mark.parametrize("coupling", ["exact", "sinkhorn"])
def test_a_larger_label_weight_pairs_fewer_different_labels(coupling):
    z, x, labels_z, labels_x = labeled(60)
    wrong = []
    for weight in (0.0, 0.1, 1.0, 1000.0):
        torch.manual_seed(1)
        index = couple(z, x, coupling=coupling, labels_z=labels_z, labels_x=labels_x, label_weight=weight)
        wrong.append(int((labels_z[index] != labels_x).sum()))
    assert wrong == sorted(wrong, reverse=True)
    assert wrong[0] > 20
    assert wrong[-1] == 0
    torch.manual_seed(1)
    without_labels = couple(z, x, coupling=coupling)
    torch.manual_seed(1)
    assert torch.equal(
        couple(z, x, coupling=coupling, labels_z=labels_z, labels_x=labels_x, label_weight=0), without_labels
    )


def test_one_hot_contexts_are_equivalent_to_labels():
    z, x, labels_z, labels_x = labeled(40)
    hot_z, hot_x = torch.eye(3)[labels_z], torch.eye(3)[labels_x]
    by_label = couple(z, x, labels_z=labels_z, labels_x=labels_x, label_weight=0.5)
    assert torch.equal(couple(z, x, labels_z=hot_z, labels_x=hot_x, label_weight=0.5), by_label)


@pytest.mark.parametrize("coupling", ["exact", "sinkhorn"])
def test_the_base_given_a_label_is_the_base_only_if_labels_are_used(coupling):
    """Sums of the rows of the base for each label, to 5 standard deviations (p-value 6e-7 for each of six numbers)."""
    sums, counts, naive = torch.zeros(3, 2), torch.zeros(3), torch.zeros(3, 2)
    for _ in range(20):
        z, x, labels_z, labels_x = labeled(60)
        index = couple(z, x, coupling=coupling, labels_z=labels_z, labels_x=labels_x)
        sums.index_add_(0, labels_x, z[index])
        counts += torch.bincount(labels_x, minlength=3)
        naive.index_add_(0, labels_x, z[couple(z, x, coupling=coupling)])
    # sinkhorn may use a row twice, which increases the standard deviation by at most 2^(1/2)
    std = (2 * counts[:, None]).sqrt()
    assert ((sums / std).abs() < 5).all()
    assert ((naive / std).abs().amax(1)[[0, 2]] > 7).all()


def test_the_index_has_no_gradient():
    z, x = batch()
    index = couple(z.requires_grad_(), x)
    assert not index.requires_grad


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"coupling": "best"}, r"'exact'"),
        ({"epsilon": 0.1}, r"epsilon > 0 for coupling='sinkhorn' and None for any other, got 0\.1 for 'exact'"),
        ({"coupling": "sinkhorn", "epsilon": -1.0}, r"epsilon > 0"),
        ({"label_weight": -1.0}, r"label_weight of at least 0, got -1"),
        ({"labels_x": torch.zeros(12)}, r"expected labels of z and of x.*got None and \(12,\)"),
        ({"labels_x": torch.zeros(12), "labels_z": torch.zeros(11)}, r"got \(11,\) and \(12,\)"),
        ({"labels_x": torch.zeros(3), "labels_z": torch.zeros(3)}, r"both \(12,\)"),
    ],
)
def test_bad_options_raise(options, message):
    with pytest.raises(ValueError, match=message):
        couple(*batch(), **options)


def test_bad_shapes_raise():
    with pytest.raises(ValueError, match=r"one shape \(n, \*event\), got \(4, 2\) and \(5, 2\)"):
        couple(torch.zeros(4, 2), torch.zeros(5, 2))
    with pytest.raises(ValueError, match=r"one shape"):
        couple(torch.zeros(4), torch.zeros(4))

"""Transport plans on lines."""

import torch
from metrics.helpers import close, normal, random_weights

from ppgen.metrics.slices import transport_plan


def test_the_plan_has_the_right_marginals_and_keeps_the_order(generator):
    u, v, p, q = (
        normal(generator, 3, 6),
        normal(generator, 3, 4),
        random_weights(generator, 6),
        random_weights(generator, 4),
    )
    i, j, mass = transport_plan(u, v, p, q)
    assert mass.min() >= 0
    for line in range(3):
        close(torch.zeros(6).double().index_add(0, i[line], mass[line]), p)
        close(torch.zeros(4).double().index_add(0, j[line], mass[line]), q)
        moved = mass[line] > 1e-15
        assert (u[line, i[line, moved]].diff() >= 0).all()
        assert (v[line, j[line, moved]].diff() >= 0).all()

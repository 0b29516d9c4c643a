"""Planar, radial and Sylvester flows."""

import math

import pytest
import torch
from flow_cases import make

from ppgen import flows


@pytest.mark.parametrize(("name", "parameter"), [("planar", "u"), ("sylvester", "outer"), ("radial", "raw_beta")])
def test_a_map_that_is_almost_not_invertible_is_inverted(name, parameter):
    """At derivatives just above zero."""
    flow = make(name, 3, layers=2)
    with torch.no_grad():
        for part in flow.maps.transforms:
            constants = part.conditional.constants
            value = constants[parameter]
            value.copy_(-20 * constants["w"] if name == "planar" else torch.full_like(value, -30.0))
        x = flow().transform(torch.randn(200, 3))
        torch.testing.assert_close(flow().transform(flow().inverse(x)), x, atol=1e-7, rtol=1e-7)


def test_a_sylvester_map_of_rank_one_is_planar():
    sylvester, planar = flows.sylvester(3, layers=1, rank=1), flows.planar(3, layers=1)
    ours, other = (flow.maps.transforms[0].conditional.constants for flow in (sylvester, planar))
    with torch.no_grad():
        ours["outer"].fill_(0.7)
        ours["inner"].fill_(0.3)
        transform = sylvester.maps.transforms[0](None).inv
        other["u"].copy_(transform.q[:, 0] * transform.r[0, 0])
        other["w"].copy_(transform.q[:, 0] * transform.s[0, 0])
        # the planar map shifts its u along w; scale u so that w . u after the shift is r_11 s_11
        slope = transform.r[0, 0] * transform.s[0, 0]
        raw = torch.log(torch.expm1(slope + 1)) - math.log(math.e - 1)
        other["u"].mul_(raw / slope)
        x = torch.randn(5, 3)
        torch.testing.assert_close(planar().log_prob(x), sylvester().log_prob(x))


def test_the_rank_is_at_most_the_dimension():
    with pytest.raises(ValueError, match=r"rank: expected 1 \.\. 2"):
        flows.sylvester(2, rank=3)

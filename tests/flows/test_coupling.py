"""Coupling flows."""

import pytest

from ppgen import flows


@pytest.mark.parametrize("name", ["nice", "realnvp", "nsf"])
def test_a_coupling_needs_two_coordinates(name):
    with pytest.raises(ValueError, match=r"a coupling splits events into two parts, .* at least 2, got 1"):
        flows.FLOWS[name](1)

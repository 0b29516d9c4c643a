"""The text of figures."""

import pytest

from ppgen.report.figures import style


def test_a_long_name_keeps_both_ends():
    assert style.shorten("a name of some length", 9) == "a na…ngth"
    assert style.shorten("short", 5) == "short"


@pytest.mark.parametrize(
    ("share", "text"), [(0.0, "0%"), (1e-9, "under 1%"), (0.014, "1%"), (0.999, "over 99%"), (1.0, "100%")]
)
def test_only_none_is_zero_percent_and_only_all_is_a_hundred(share, text):
    assert style.percent(share) == text

"""The section on adversarial training."""

import numpy as np
from reports import chain, context_of, fit_of

from ppgen.fitting import Fit
from ppgen.report import Figure
from ppgen.report.sections.adversarial import NO_WARNINGS, adversarial_training


def adversarial_fit(**adversarial_metrics: np.ndarray) -> Fit:
    """A fit whose chain kept these signals of a critic called D(x)."""
    names = {"edge": "critic D(x)", "slope": "gradient of critic D(x)", "programs": "gradient of the programs"}
    one = chain(400)
    one.adversarial_metrics = {names[key]: values for key, values in adversarial_metrics.items()}
    return fit_of(one)


def test_a_collapsed_critic_is_in_the_table_of_warnings():
    steady = np.full(400, 0.1)
    healthy = adversarial_fit(edge=-steady, slope=steady, programs=steady)
    collapsed = adversarial_fit(edge=0 * steady, slope=np.repeat([0.1, 1e-7], 200), programs=steady)
    assert adversarial_training(context_of(fit_of())) is None
    assert [type(item) for item in adversarial_training(context_of(healthy)).items] == [Figure]
    assert NO_WARNINGS in adversarial_training(context_of(healthy)).text
    _, table = adversarial_training(context_of(collapsed)).items
    assert table.rows[0][0] == "critic collapsed"
    assert "learning rate" in table.rows[0][3]

"""Plates to which a model gives rows, ``pyro.plate("data", N, subsample=rows)``, while the guide chooses its own.

Replaying a guide replaces the rows of the model's plate by those of the guide's plate of that name. Where the guide
draws them, as an autoguide without ``create_plates=`` does, a model reads the data of some rows and the latents of
others, and nothing that it computes is right.
"""

from collections.abc import Mapping

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ppgen.tracing.programs import get_trace
from ppgen.tracing.sites import Program, Site, is_subsample, quote_names

__all__ = ["replaced_rows"]


def replaced_rows(model: Program, guide: Program, args: tuple, kwargs: Mapping | None = None) -> str:
    """Which plates of the guide replace rows that the model is given, as a message; empty if there are none.

    Args:
        model: a Pyro program.
        guide: a Pyro program.
        args: the arguments of both.
        kwargs: their keyword arguments.
    """
    if isinstance(poutine.unwrap(guide), Messenger):  # Pyro's GuideMessenger, which runs in the model's plates
        return ""
    of_model, of_guide, kwargs = _GivenRows(), _GivenRows(), kwargs or {}
    guide_trace = get_trace(of_guide(guide), *args, **kwargs)
    get_trace(poutine.replay(of_model(model), trace=guide_trace), *args, **kwargs)
    sites = {name: site for name, site in guide_trace.nodes.items() if name not in of_guide.rows}
    drawn = {name: site["value"] for name, site in sites.items() if is_subsample(site)}
    pairs = {name: (rows, drawn[name].to(rows)) for name, rows in of_model.rows.items() if name in drawn}
    names = [name for name, (rows, others) in pairs.items() if not torch.equal(rows, others)]
    if not names:
        return ""
    return (
        f"the model gives the plate {quote_names(names)} its rows (subsample=), and the guide draws other rows for it, "
        "so that the latents of some rows meet the data of others: give the guide's plate the same rows; an autoguide "
        "takes create_plates=, a function of the same arguments that returns pyro.plate(name, size, subsample=rows)"
    )


class _GivenRows(Messenger):
    """Records the rows that a program gives to its plates; placed around the program, before any other handler."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: dict[str, Tensor] = {}

    def _pyro_sample(self, msg: Site) -> None:
        if is_subsample(msg) and msg["value"] is not None:
            self.rows[msg["name"]] = torch.as_tensor(msg["value"])

"""The section that compares restarts."""

from typing import Any

import numpy as np
import xarray as xr

from ppgen.diagnostics.checks.draws import comparable_chains
from ppgen.diagnostics.reading import SAMPLE_DIMS
from ppgen.posterior.importance import NEGLIGIBLE_NATS
from ppgen.report import figures
from ppgen.report.context import FitContext
from ppgen.report.figures.posterior import components
from ppgen.report.page import Figure, Section, Table
from ppgen.report.sections.evidence import log_evidence
from ppgen.utils.arviz_versions import rhat

__all__ = ["restarts"]

MAX_PANELS = 6
MAX_COMPONENTS = 5000  # that are compared; of more, only those of global latents and of the first datum


def restarts(context: FitContext) -> Section | None:
    """The components that differ most between restarts, and the evidence of each; None for a single restart."""
    posterior, vi = context.group("posterior"), context.group("vi_stats")
    if posterior is None or vi is None or (chains := posterior.sizes["chain"]) < 2:
        return None
    weighted = "log_marginal" in vi
    compared = comparable_chains(vi).tolist() if weighted else list(range(chains))
    size = sum(v.size for v in posterior.data_vars.values()) // (posterior.sizes["draw"] * chains)
    draws = components(posterior, all_data=size <= MAX_COMPONENTS)
    shown = _most_different(draws, compared)
    r_hat = {}
    if len(compared) > 1:
        stacked = {str(i): (SAMPLE_DIMS, draws[name].astype(float)[compared]) for i, name in enumerate(shown)}
        found = rhat(xr.Dataset(stacked))
        r_hat = {name: float(found[str(i)]) for i, name in enumerate(shown)}
    chain = "chain" if context.fit.stored_draws else "restart"
    caption = f"The median of each {chain}'s draws, with its central 50% and 94% intervals. R-hat compares the {chain}s"
    if not context.fit.stored_draws:
        caption += f" whose log evidence is within {NEGLIGIBLE_NATS:.0f} nats of the largest one; the others are pale"
    caption += "."
    entries = {name: draws[name] for name in shown}
    picture = figures.restart_intervals(entries, r_hat=r_hat, compared=compared, total=len(draws))
    items: list[Any] = [Figure(picture, caption, f"Intervals. {caption}")]
    if context.fit.stored_draws:
        rows = list(enumerate(vi["log_marginal_of_chain"].values.tolist()))
        items.append(Table(("chain", "log evidence (nats)"), rows))
    elif weighted:
        items.append(_table(vi, posterior.sizes["draw"], compared))
    return Section(f"Do the {chain}s agree?", "", items)


def _most_different(draws: dict[str, np.ndarray], compared: list[int]) -> list[str]:
    """The components whose means differ most between chains, in units of the standard deviations within chains."""
    z = np.stack([value.astype(float) for value in draws.values()])
    z = z[:, compared] if len(compared) > 1 else z
    with np.errstate(divide="ignore", invalid="ignore"):  # a component may be constant within a chain
        difference = z.mean(-1).std(-1) / np.sqrt(z.var(-1).mean(-1))
    order = np.argsort(-np.nan_to_num(difference, nan=-1.0, posinf=np.inf), kind="stable")
    return [list(draws)[i] for i in order[:MAX_PANELS]]


def _table(vi: xr.Dataset, draws: int, compared: list[int]) -> Table:
    rows = []
    for chain in range(vi.sizes["chain"]):
        khat, ess = (vi[name].values[chain] for name in ("pareto_k", "ess"))
        in_rhat = "yes" if chain in compared else "no"
        rows.append((chain, log_evidence(vi, chain), float(np.median(khat)), float(np.mean(ess) / draws), in_rhat))
    header = ("restart", "log evidence (nats)", "k-hat", "effective sample size / draws", "compared by R-hat")
    caption = "k-hat is the median over data." if vi["pareto_k"].ndim > 1 else ""
    return Table(header, rows, caption)

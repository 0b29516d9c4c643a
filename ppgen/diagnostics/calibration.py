"""Is inference right on average over the prior? Simulation-based calibration, coverage, and TARP.

With z, x ~ p(z, x) and draws z_1 .. z_S of the inference at x, each component of the latents has a rank

    r = #{s : z_s < z},   uniform on 0 .. S if the draws are those of the posterior,

in each of L simulations (Talts et al. 2018, https://arxiv.org/abs/1804.06788). Draws that are too narrow have too many
small and large ranks, draws that are too wide have too few, and shifted draws have too many on one side. TARP (Lemos et
al. 2023, https://arxiv.org/abs/2302.03026) ranks the distances to a random point c, r = #{s : |z_s - c| < |z - c|},
which depends on all components together. Uniform ranks are necessary and not sufficient: draws of the prior, whatever
the data, have uniform ranks too, unless c depends on the data.

The test of L ranks uses the counts N_k = #{l : r_l <= k}, which are Binomial(L, (k + 1) / (S + 1)), and the smallest of
their tail probabilities over k (Säilynoja et al. 2022, https://arxiv.org/abs/2103.10522). Its null distribution is
simulated on 0 .. S, so the p-value is exact for all L and S, and so is the simultaneous band of the paths that pass the
test. The bands of ArviZ 1.x are those of continuous values, and have no p-value.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from ppgen.infer.parameters import CollectParameters, EvalMode
from ppgen.losses.wake_sleep import simulate_joint
from ppgen.models.simulator import Simulator
from ppgen.tracing.sites import Program, data_plate, did_you_mean, latent_sites
from ppgen.tracing.traces import Traces

__all__ = ["Calibration", "ECDFBand", "Ranks", "calibrate", "sbc", "sbc_of", "tarp"]

Array: TypeAlias = np.ndarray | Tensor
NULL_PATHS = 2000  # simulated with uniform ranks
SMALLEST_P = 1 / (1 + NULL_PATHS)  # of a single test
MAX_POINTS = 100  # of a path


@dataclass(frozen=True)
class ECDFBand:
    """Cumulative shares of ranks at m points, and their simultaneous band.

    Attributes:
        expected: the shares (m,) of uniform ranks.
        found: the shares (m, d) of d components.
        low: the lower end (m,) of the band.
        high: the upper end (m,) of the band.
    """

    expected: np.ndarray
    found: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True)
class Ranks:
    """Ranks of true values among draws, which are uniform if inference is right.

    Attributes:
        ranks: integers (L, d) from 0 to `draws`, of d components in L simulations.
        draws: S, the number of draws.
        names: the names of the components.
    """

    ranks: np.ndarray
    draws: int
    names: tuple[str, ...]

    @property
    def p_values(self) -> np.ndarray:
        """The p-values (d,) of the test that the ranks of each component are uniform."""
        worst = _smallest_tail(self._counts, len(self.ranks), self._expected)
        return (1 + (_null(len(self.ranks), self.draws)[:, None] <= worst).sum(0)) / (1 + NULL_PATHS)

    def path(self, level: float = 0.95) -> ECDFBand:
        """The cumulative shares of the ranks, and the band that contains a whole path of uniform ranks.

        Args:
            level: the probability that the band contains it.

        Raises:
            ValueError: if the level is not between 0 and 1.
        """
        if not 0 < level < 1:
            raise ValueError(f"Ranks: level is a probability between 0 and 1, got {level}")
        size, p = len(self.ranks), self._expected
        sorted_null = np.sort(_null(size, self.draws))
        # paths up to this tail have p-values up to 1 - level; slightly below, since it is itself the tail of a path
        tail = sorted_null[max(int((1 - level) * (1 + NULL_PATHS)), 1) - 1] * (1 - 1e-9)
        low, high = stats.binom.ppf(tail, size, p), size - stats.binom.ppf(tail, size, 1 - p)
        return ECDFBand(p, self._counts / size, low / size, high / size)

    @property
    def coverage(self) -> "Ranks":
        """The ranks of central intervals.

        The `path` of the result compares their probabilities with the shares of true values in them.

        Raises:
            ValueError: for an even number of draws, for which there are no central intervals.
        """
        if self.draws % 2 == 0:
            raise ValueError(
                f"coverage: central intervals need an odd number of draws, got {self.draws}; leave one out"
            )
        outside = np.minimum(self.ranks, self.draws - self.ranks)
        half = (self.draws - 1) // 2
        return Ranks(half - outside, half, self.names)

    @property
    def symmetry(self) -> np.ndarray:
        """The p-values (d,) of the test that ranks are symmetric: of bias, and not of width.

        If an approximation is known to be too narrow, as mean-field ones are, this tests whether its center is right
        (Yao et al. 2018, https://arxiv.org/abs/1802.02538). The test flips the signs of 2r - S at random, which leaves
        a symmetric distribution unchanged. The statistic is the largest difference between the shares of ranks counted
        from the left and from the right.
        """
        rng, found = np.random.default_rng(0), []
        for column in self.ranks.T:
            centered = 2 * column - self.draws
            centered = centered[np.argsort(-np.abs(centered), kind="stable")]
            ends = np.flatnonzero(np.append(np.diff(np.abs(centered)) != 0, True))
            signs = rng.choice([-1, 1], size=(NULL_PATHS, len(centered)))
            difference, others = (
                np.abs(np.cumsum(s * np.sign(np.abs(centered)), -1)[..., ends]).max(-1)
                for s in (np.sign(centered), signs)
            )
            found.append((1 + (others >= difference).sum()) / (1 + NULL_PATHS))
        return np.array(found)

    @property
    def _points(self) -> np.ndarray:
        return _points(self.draws)

    @property
    def _expected(self) -> np.ndarray:
        return (self._points + 1) / (self.draws + 1)

    @property
    def _counts(self) -> np.ndarray:
        return (self.ranks <= self._points[:, None, None]).sum(1)


@dataclass(frozen=True)
class Calibration:
    """Ranks from one set of simulations.

    Attributes:
        ranks: the ranks of each component of the latents.
        distances: the ranks of TARP.
    """

    ranks: Ranks
    distances: Ranks

    @property
    def p_value(self) -> float:
        """The p-value of all components and of TARP together, by Bonferroni's correction."""
        each = np.concatenate([self.ranks.p_values, self.distances.p_values])
        return float(min(1.0, len(each) * each.min()))

    def __str__(self) -> str:
        rows = [("component", "p uniform", "p symmetric", "in central 50%", "90%")]
        for part in (self.ranks, self.distances):
            shares = [_share_within(part.ranks, part.draws, width) for width in (0.5, 0.9)]
            columns = zip(part.names, part.p_values, part.symmetry, *shares, strict=True)
            rows += [(name, f"{p:.3f}", f"{q:.3f}", f"{half:.0%}", f"{most:.0%}") for name, p, q, half, most in columns]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        size = f"{len(self.ranks.ranks)} simulations, {self.ranks.draws} draws"
        return "\n".join([f"{size}; all tests together p {self.p_value:.3f}", *lines])


def calibrate(
    truths: Array | Mapping[str, Array],
    draws: Array | Mapping[str, Array],
    *,
    references: Array | None = None,
    seed: int = 0,
) -> Calibration:
    """Ranks true values among draws.

    Args:
        truths: the latents (L, *event) that each simulation was made with, or several latents by name.
        draws: the draws (L, S, *event) of the inference at the data of each simulation; S odd, so that there are
            central intervals.
        references: the reference points of `tarp`.
        seed: of ties, which are broken at random, and of references.

    Raises:
        ValueError: if shapes do not match, or values are not finite.
    """
    true, names = _columns(truths, 1, "truths")
    drawn, others = _columns(draws, 2, "draws")
    if names != others or len(true) != len(drawn):
        raise ValueError(
            f"calibrate: truths of {len(true)} simulations with {', '.join(names)}, but draws of {len(drawn)} with "
            f"{', '.join(others)}; draws are (simulations, draws, *event)"
        )
    return Calibration(
        Ranks(_ranks(true, drawn, np.random.default_rng(seed)), drawn.shape[1], names),
        tarp(true, drawn, references=references, seed=seed),
    )


def tarp(truths: Array, draws: Array, *, references: Array | None = None, seed: int = 0) -> Ranks:
    """Ranks of the distance to a reference point (TARP): `path` is the curve of expected coverage.

    Args:
        truths: the true values (L, *event).
        draws: the draws (L, S, *event).
        references: the reference points (L, *event); by default uniform over the range of the truths. If they depend
            on the data of each simulation, the test also detects draws that do not depend on the data.
        seed: of references and ties.

    Raises:
        ValueError: if shapes do not match, or values are not finite.
    """
    (true, names), (drawn, _) = _columns(truths, 1, "truths"), _columns(draws, 2, "draws")
    low, spread = true.min(0), np.ptp(true, axis=0)
    rng = np.random.default_rng([seed, 1])
    points = low + spread * rng.random(true.shape) if references is None else _columns(references, 1, "references")[0]
    if points.shape != true.shape or drawn.shape != (len(true), drawn.shape[1], len(names)):
        raise ValueError(
            f"tarp: expected truths and references of one shape, and draws (simulations, draws, *event), got "
            f"{true.shape}, {points.shape} and {drawn.shape}, each event as one row"
        )
    unit = np.where(spread > 0, spread, 1.0)
    of_truths = np.linalg.norm((true - points) / unit, axis=-1)[:, None]
    of_draws = np.linalg.norm((drawn - points[:, None]) / unit, axis=-1)[..., None]
    return Ranks(_ranks(of_truths, of_draws, rng), drawn.shape[1], ("distance",))


def sbc(
    model: Program,
    guide: Program,
    *data: Tensor,
    simulations: int = 500,
    draws: int = 99,
    sites: Sequence[str] | None = None,
    seed: int = 0,
) -> Calibration:
    """Calibrates an amortized guide: ranks its draws at data that the model generates.

    Args:
        model: the model, whose networks run in eval mode. A `ppgen.Simulator` needs no data.
        guide: the guide, whose networks run in eval mode.
        *data: the arguments of the programs, of which only the shapes matter. If all latents are in the plate "data",
            each row is a simulation, and otherwise each data set.
        simulations: L.
        draws: S, odd.
        sites: the latents to rank; all if left out.
        seed: of the simulations; the caller's random state does not change.

    Raises:
        LookupError: as `ppgen.Sleep`, and for unknown sites.
        ValueError: as `ppgen.Sleep`.

    Example:
        >>> import pyro
        >>> import pyro.distributions as dist
        >>> import ppgen
        >>> def model(x=None):
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def posterior(x, z=None):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))
        >>> ppgen.diagnostics.sbc(ppgen.Simulator(model), posterior, simulations=100, draws=19).p_value > 0.01
        True
    """
    if isinstance(model, Simulator) and not data:
        with _seeded_eval_mode(seed):
            data = tuple(model.draw(simulations)[: len(model.data)])
    truths: list[dict[str, Tensor]] = []
    drawn: list[dict[str, Tensor]] = []
    with _seeded_eval_mode(seed):
        while not truths or sum(len(next(iter(part.values()))) for part in truths) < simulations:
            base = Traces(model, guide, data)
            latents, simulated = simulate_joint(base)
            names = _latents_to_rank(sites, latents)
            generated = latent_sites(base.generated)
            local = all(data_plate(generated[name]) is not None for name in names)
            truths.append({name: _rows(generated[name], local) for name in names})
            traces = [simulated.run(guide) for _ in range(draws)]
            drawn.append({k: torch.stack([_rows(t.nodes[k], local) for t in traces], 1) for k in names})
    stacked = [{k: torch.cat([part[k] for part in parts])[:simulations] for k in parts[0]} for parts in (truths, drawn)]
    return calibrate(*stacked, seed=seed)


def sbc_of(
    model: Program,
    posterior: Callable[..., Mapping[str, Array]],
    *data: Tensor,
    simulations: int = 100,
    sites: Sequence[str] | None = None,
    seed: int = 0,
) -> Calibration:
    """Calibrates any inference: a function from data to posterior draws, which may fit a guide to the data.

    The width of a variational fit is often known to be wrong; see `Ranks.symmetry` for a test of its center.

    Args:
        model: the model, as in `sbc`.
        posterior: the function from a data set (for a `ppgen.Simulator`, one datum without the dimension of rows) to
            draws (S, *event) of each latent by name, with the same odd S every time.
        *data: the arguments of the model, of which only the shapes matter.
        simulations: L; every data set is one simulation.
        sites: the latents to rank; all if left out.
        seed: of the simulations; the caller's random state does not change.

    Raises:
        LookupError: as `sbc`, and if the function does not return a latent.
        ValueError: as `sbc`.
    """
    truths: list[dict[str, Tensor]] = []
    drawn: list[dict[str, Tensor]] = []
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for _ in range(simulations):
            if isinstance(model, Simulator):
                row = model.draw(1)._asdict()
                latents = {name: row[name][0] for name in model.latents}
                given = tuple(row[name][0] for name in model.data)
            else:
                latents, simulated = simulate_joint(Traces(model, lambda *_: None, data))
                given = simulated.args
            names = _latents_to_rank(sites, latents)
            found = posterior(*given)
            if missed := [name for name in names if name not in found]:
                raise LookupError(f"sbc_of: the posterior's draws lack {missed[0]!r}; {did_you_mean(missed[0], found)}")
            truths.append({name: latents[name].reshape(1, -1) for name in names})
            drawn.append({k: torch.as_tensor(found[k]).detach().reshape(1, len(found[k]), -1) for k in names})
    stacked = [{k: torch.cat([part[k] for part in parts]) for k in parts[0]} for parts in (truths, drawn)]
    return calibrate(*stacked, seed=seed)


@contextmanager
def _seeded_eval_mode(seed: int) -> Iterator[None]:
    """Eval mode without gradients, under a seed, without a trace in the parameter store or the random state."""
    with torch.no_grad(), torch.random.fork_rng(), EvalMode(), CollectParameters():
        torch.manual_seed(seed)
        yield


def _latents_to_rank(sites: Sequence[str] | None, latents: Mapping[str, Any]) -> list[str]:
    """The given sites, or all latents."""
    for name in sites or ():
        if name not in latents:
            raise LookupError(f"sbc: the model draws no latent {name!r}; {did_you_mean(name, latents)}")
    return list(latents if sites is None else sites)


def _rows(site: dict[str, Any], local: bool) -> Tensor:
    """The values of a site as rows of the plate "data", or all of them as one row."""
    value, frame = site["value"].detach(), data_plate(site)
    if not local or frame is None:
        return value.reshape(1, -1)
    return value.movedim(value.dim() - site["fn"].event_dim + frame.dim, 0).reshape(frame.size, -1)


def _columns(values: Array | Mapping[str, Array], lead: int, what: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """The components of all latents (*lead, d), and their names."""
    parts, names = [], []
    for name, part in (values if isinstance(values, Mapping) else {"z": values}).items():
        array = np.asarray(part.numpy(force=True) if isinstance(part, Tensor) else part, dtype=float)
        if array.ndim < lead or not np.isfinite(array).all():
            raise ValueError(
                f"{what} of {name!r}: expected finite numbers of at least {lead} axes, got shape {array.shape} with "
                f"{int((~np.isfinite(array)).sum())} that are not finite"
            )
        event = array.shape[lead:]
        parts.append(array.reshape(*array.shape[:lead], -1))
        names += [name] if np.prod(event) == 1 else [f"{name}{list(index)}" for index in np.ndindex(event)]
    return np.concatenate(parts, -1), tuple(names)


def _ranks(true: np.ndarray, drawn: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The ranks (L, d) of truths (L, d) among draws (L, S, d), with ties broken at random."""
    below, same = (drawn < true[:, None]).sum(1), (drawn == true[:, None]).sum(1)
    return below + rng.integers(0, same + 1)


def _share_within(ranks: np.ndarray, draws: int, width: float) -> np.ndarray:
    """The shares (d,) of ranks in the central interval of about this probability."""
    out = round((1 - width) / 2 * (draws + 1))
    return ((ranks >= out) & (ranks <= draws - out)).mean(0)


def _points(draws: int) -> np.ndarray:
    """The ranks, below the last, at which paths are evaluated."""
    return np.unique(np.linspace(0, draws - 1, min(draws, MAX_POINTS)).round().astype(int))


def _smallest_tail(counts: np.ndarray, size: int, p: np.ndarray) -> np.ndarray:
    """The smallest tail probability of each path of counts (m, *paths) with expected shares p (m,)."""
    p = p.reshape(-1, *(1,) * (counts.ndim - 1))
    tails = np.minimum(stats.binom.cdf(counts, size, p), stats.binom.cdf(size - counts, size, 1 - p))
    return tails.min(0)


@lru_cache(maxsize=32)
def _null(size: int, draws: int) -> np.ndarray:
    """The smallest tail probabilities of paths of uniform ranks: the null distribution of the test."""
    points = _points(draws)
    edges = np.diff(np.concatenate([[-1], points, [draws]]))
    counts = np.random.default_rng(0).multinomial(size, edges / (draws + 1), size=NULL_PATHS)
    return _smallest_tail(counts.cumsum(-1)[:, :-1].T, size, (points + 1) / (draws + 1))

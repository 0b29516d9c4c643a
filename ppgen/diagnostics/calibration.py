"""Is inference right on average over the prior? Simulation-based calibration (Talts et al. 2018), coverage, TARP.

With z, x ~ p(z, x) and z_1 .. z_S drawn by the inference at x, each number of the latents has a rank

    r = #{s : z_s < z},   uniform on 0 .. S if the draws are the posterior's,

over L simulations. Draws that are too narrow give many small and large ranks, too wide ones few, shifted ones a slope.
TARP (Lemos et al. 2023) ranks distances to a random point c, r = #{s : |z_s - c| < |z - c|}, which goes by all numbers
together. Uniform ranks are necessary, not sufficient: draws of the prior, whatever the data, have them too, unless c is
chosen by the data.

The test of L ranks goes by the path N_k = #{l : r_l <= k}, Binomial(L, (k + 1) / (S + 1)) at each k, and by the
smallest of all the tail probabilities on it (Säilynoja et al. 2022). The law of that is simulated on 0 .. S itself, so
the p-value is exact at every L and S, and so is the simultaneous band of all paths that the test lets pass. ArviZ's
bands are for continuous values, in 1.x, and have no p-value.
"""

from collections.abc import Callable, Mapping, Sequence
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
PATHS = 2000  # simulated under uniform ranks
POINTS = 100  # of a path that are looked at, at most


@dataclass(frozen=True)
class ECDFBand:
    """Shares of ranks up to some: `expected` (m,), `found` (m, d), and the band from `low` to `high` (m,)."""

    expected: np.ndarray
    found: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True)
class Ranks:
    """`ranks` (L, d) of d numbers by name, whole numbers from 0 to `draws`, uniform if all is right."""

    ranks: np.ndarray
    draws: int
    names: tuple[str, ...]

    @property
    def p_values(self) -> np.ndarray:
        """(d,), of the test that each number's ranks are uniform."""
        worst = _worst_tail(self._counts, len(self.ranks), self._expected)
        return (1 + (_null(len(self.ranks), self.draws)[:, None] <= worst).sum(0)) / (1 + PATHS)

    def path(self, level: float = 0.95) -> ECDFBand:
        """The cumulative shares of each number, beside the band that has all of a uniform path with this probability.

        Raises:
            ValueError: if the level is not between 0 and 1.
        """
        if not 0 < level < 1:
            raise ValueError(f"Ranks: level is a probability between 0 and 1, got {level}")
        size, p = len(self.ranks), self._expected
        sorted_null = np.sort(_null(size, self.draws))
        # paths up to this tail have p-values up to 1 - level; a hair below, since it is itself the tail of a path
        tail = sorted_null[max(int((1 - level) * (1 + PATHS)), 1) - 1] * (1 - 1e-9)
        low, high = stats.binom.ppf(tail, size, p), size - stats.binom.ppf(tail, size, 1 - p)
        return ECDFBand(p, self._counts / size, low / size, high / size)

    @property
    def coverage(self) -> "Ranks":
        """Of central intervals: `path` has their probabilities as expected and the shares of true values in them.

        Raises:
            ValueError: for an even number of draws, half of which are on neither side.
        """
        if self.draws % 2 == 0:
            raise ValueError(
                f"coverage: central intervals want an odd number of draws, got {self.draws}; leave one out"
            )
        outside = np.minimum(self.ranks, self.draws - self.ranks)
        half = (self.draws - 1) // 2
        return Ranks(half - outside, half, self.names)

    @property
    def symmetry(self) -> np.ndarray:
        """p-values (d,) of the test that ranks are as often low as high: of bias alone, not of width (Yao et al. 2018).

        Where an approximation is known to be narrow, as a mean field's, this asks whether its center is right. The
        signs of 2r - S are dealt anew, which changes nothing if their law is symmetric; the statistic is the largest
        difference between the shares of ranks from the left and from the right.
        """
        rng, found = np.random.default_rng(0), []
        for column in self.ranks.T:
            centered = 2 * column - self.draws
            centered = centered[np.argsort(-np.abs(centered), kind="stable")]
            ends = np.flatnonzero(np.append(np.diff(np.abs(centered)) != 0, True))
            signs = rng.choice([-1, 1], size=(PATHS, len(centered)))
            difference, others = (
                np.abs(np.cumsum(s * np.sign(np.abs(centered)), -1)[..., ends]).max(-1)
                for s in (np.sign(centered), signs)
            )
            found.append((1 + (others >= difference).sum()) / (1 + PATHS))
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
    """Ranks of each number of the latents, and TARP's of their distances, over one set of simulations."""

    ranks: Ranks
    distances: Ranks

    @property
    def p_value(self) -> float:
        """Of all numbers and of their distances together, by Bonferroni's bound: it holds its level."""
        each = np.concatenate([self.ranks.p_values, self.distances.p_values])
        return float(min(1.0, len(each) * each.min()))

    def __str__(self) -> str:
        rows = [("number", "p uniform", "p symmetric", "in central 50%", "90%")]
        for part in (self.ranks, self.distances):
            shares = [_share_within(part.ranks, part.draws, width) for width in (0.5, 0.9)]
            columns = zip(part.names, part.p_values, part.symmetry, *shares, strict=True)
            rows += [(name, f"{p:.3f}", f"{q:.3f}", f"{half:.0%}", f"{most:.0%}") for name, p, q, half, most in columns]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        first = f"{len(self.ranks.ranks)} simulations, {self.ranks.draws} draws; all together p {self.p_value:.3f}"
        return "\n".join([first, *lines])


def calibrate(
    truths: Array | Mapping[str, Array],
    draws: Array | Mapping[str, Array],
    *,
    references: Array | None = None,
    seed: int = 0,
) -> Calibration:
    """Ranks true values among draws.

    Args:
        truths: (L, *event), what each simulation was made with; or those of several latents, by name.
        draws: (L, S, *event), what inference drew at the data of each; S odd, so that intervals can be central.
        references: of TARP, see `tarp`.
        seed: of ties, which are settled at random, and of references.

    Raises:
        ValueError: if shapes do not go together, or values are not finite.
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
    """Ranks of the distance to a reference point (Lemos et al. 2023): `path` is the curve of expected coverage.

    Args:
        truths, draws: (L, *event) and (L, S, *event).
        references: (L, *event); uniform over the box of the truths if left out. Chosen by the data of each simulation,
            they also tell the posterior from draws that do not heed the data.
        seed: of references and ties.

    Raises:
        ValueError: if shapes do not go together, or values are not finite.
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
    """Calibration of an amortized guide: of its draws at data that the model generates.

    Args:
        model, guide: programs, networks in eval mode meanwhile. A `ppgen.Simulator` needs no data.
        data: what the programs take; only the shapes matter. Where all latents lie in the plate "data", each row is a
            simulation, and otherwise each data set is one.
        simulations: L.
        draws: S, odd.
        sites: latents to rank, all if left out.
        seed: the caller's random state is left as it was.

    Raises:
        LookupError, ValueError: as `ppgen.Sleep`, and for unknown sites.
    """
    if isinstance(model, Simulator) and not data:
        with _quietly(seed):
            data = tuple(model.draw(simulations)[: len(model.data)])
    truths: list[dict[str, Tensor]] = []
    drawn: list[dict[str, Tensor]] = []
    with _quietly(seed):
        while not truths or sum(len(next(iter(part.values()))) for part in truths) < simulations:
            base = Traces(model, guide, data)
            latents, asleep = simulate_joint(base)
            names = _chosen(sites, latents)
            generated = latent_sites(base.generated)
            local = all(data_plate(generated[name]) is not None for name in names)
            truths.append({name: _rows(generated[name], local) for name in names})
            traces = [asleep.run(guide) for _ in range(draws)]
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
    """Calibration of any inference: a function from data to posterior draws, which may fit a guide to them.

    Of a variational fit, whose width is often known to be wrong, see `Ranks.symmetry` (Yao et al. 2018).

    Args:
        model: as of `sbc`.
        posterior: takes a data set as the model does (of a `ppgen.Simulator`, one datum, without the axis of rows) and
            returns draws of each latent by name, (S, *event), equally many every time, S odd.
        data, simulations, sites, seed: as of `sbc`; every data set is one simulation.

    Raises:
        LookupError, ValueError: as `sbc`, and if the function returns other latents.
    """
    truths: list[dict[str, Tensor]] = []
    drawn: list[dict[str, Tensor]] = []
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for _ in range(simulations):
            if isinstance(model, Simulator):
                simulated = model.draw(1)._asdict()
                latents = {name: simulated[name][0] for name in model.latents}
                given = tuple(simulated[name][0] for name in model.data)
            else:
                latents, asleep = simulate_joint(Traces(model, lambda *_: None, data))
                given = asleep.args
            names = _chosen(sites, latents)
            found = posterior(*given)
            if missed := [name for name in names if name not in found]:
                raise LookupError(f"sbc_of: the posterior's draws lack {missed[0]!r}; {did_you_mean(missed[0], found)}")
            truths.append({name: latents[name].reshape(1, -1) for name in names})
            drawn.append({k: torch.as_tensor(found[k]).detach().reshape(1, len(found[k]), -1) for k in names})
    stacked = [{k: torch.cat([part[k] for part in parts]) for k in parts[0]} for parts in (truths, drawn)]
    return calibrate(*stacked, seed=seed)


@contextmanager
def _quietly(seed: int):
    with torch.no_grad(), torch.random.fork_rng(), EvalMode(), CollectParameters():
        torch.manual_seed(seed)
        yield


def _chosen(sites: Sequence[str] | None, latents: Mapping[str, Any]) -> list[str]:
    for name in sites or ():
        if name not in latents:
            raise LookupError(f"sbc: the model draws no latent {name!r}; {did_you_mean(name, latents)}")
    return list(latents if sites is None else sites)


def _rows(site: dict[str, Any], local: bool) -> Tensor:
    """A site's values as rows of the plate "data", or all as one row."""
    value, frame = site["value"].detach(), data_plate(site)
    if not local or frame is None:
        return value.reshape(1, -1)
    return value.movedim(value.dim() - site["fn"].event_dim + frame.dim, 0).reshape(frame.size, -1)


def _columns(values: Array | Mapping[str, Array], lead: int, what: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Values of all latents side by side, (*lead, d), and a name for each number."""
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
    """(L, d) of truths (L, d) among draws (L, S, d), ties at random."""
    below, same = (drawn < true[:, None]).sum(1), (drawn == true[:, None]).sum(1)
    return below + rng.integers(0, same + 1)


def _share_within(ranks: np.ndarray, draws: int, width: float) -> np.ndarray:
    """The share (d,) of ranks in the central interval of about this probability."""
    out = round((1 - width) / 2 * (draws + 1))
    return ((ranks >= out) & (ranks <= draws - out)).mean(0)


def _points(draws: int) -> np.ndarray:
    """Ranks at which paths are looked at, below the last."""
    return np.unique(np.linspace(0, draws - 1, min(draws, POINTS)).round().astype(int))


def _worst_tail(counts: np.ndarray, size: int, p: np.ndarray) -> np.ndarray:
    """The smallest tail probability of each path, counts (m, *paths) with expected shares p (m,)."""
    p = p.reshape(-1, *(1,) * (counts.ndim - 1))
    tails = np.minimum(stats.binom.cdf(counts, size, p), stats.binom.cdf(size - counts, size, 1 - p))
    return tails.min(0)


@lru_cache(maxsize=32)
def _null(size: int, draws: int) -> np.ndarray:
    """The worst tails of paths of uniform ranks."""
    points = _points(draws)
    edges = np.diff(np.concatenate([[-1], points, [draws]]))
    counts = np.random.default_rng(0).multinomial(size, edges / (draws + 1), size=PATHS)
    return _worst_tail(counts.cumsum(-1)[:, :-1].T, size, (points + 1) / (draws + 1))

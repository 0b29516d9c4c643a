"""A check of whether latents that were integrated out are close to Gaussian given the others."""

from ppgen.diagnostics.checks.check import BAD, Check, Finding
from ppgen.diagnostics.checks.draws import PosteriorDraws

__all__ = ["FIELD_SKEW"]

MAX_SKEW = 0.3  # whose square is about the relative error of a standard deviation


def field_skew(draws: PosteriorDraws) -> Finding | None:
    """The distance of mean and mode of such a latent, if they were drawn from Gaussians."""
    skew = draws.fit.metadata.get("rows", {}).get("skew")
    if skew is None:
        return None
    if skew <= MAX_SKEW:
        return Finding(skew)
    reason = f"above {MAX_SKEW}: given the others, some of the latents that were integrated out are skewed"
    return Finding(skew, reason, BAD, advise=True)


FIELD_SKEW = Check(
    "field_skew",
    "The largest distance between mean and mode of a latent that was integrated out by Laplace's approximation, in "
    "standard deviations; draws have the right means to first order, and other moments of a Gaussian.",
    field_skew,
    f"It should be at most {MAX_SKEW}, the square of which is about the relative error of a standard deviation.",
    advice=("more data for each of these latents, or a sampler (NUTS)",),
)

"""Every distribution of Pyro that can be constructed, as a function of a positive number, a parameter of it."""

import inspect
from collections.abc import Callable

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, eye, ones, tensor, zeros
from torch.distributions import Distribution

Constructor = Callable[[Tensor], TorchDistribution]


def logits(t: Tensor) -> Tensor:
    return torch.stack([t, -t, 0 * t])


def hmm_parts(t: Tensor) -> tuple:
    """Initial distribution, transition matrix and noise, observation matrix and noise of a state of two numbers."""
    noise = dist.MultivariateNormal(zeros(2), eye(2))
    return dist.MultivariateNormal(zeros(2), t * eye(2)), 0.5 * eye(2), noise, eye(2), noise


CASES: dict[str, Constructor] = {
    "AVFMultivariateNormal": lambda t: dist.AVFMultivariateNormal(t * ones(2), eye(2), zeros(2, 3, 2)),
    "AffineBeta": lambda t: dist.AffineBeta(t, t + 1, -t, 2 * t),
    "AsymmetricLaplace": lambda t: dist.AsymmetricLaplace(t, t, 1.5),
    "Bernoulli": lambda t: dist.Bernoulli(logits=t),
    "Beta": lambda t: dist.Beta(t, 2.0),
    "BetaBinomial": lambda t: dist.BetaBinomial(t, 2.0, total_count=10),
    "Binomial": lambda t: dist.Binomial(10, logits=t),
    "Categorical": lambda t: dist.Categorical(logits=logits(t)),
    "Cauchy": lambda t: dist.Cauchy(t, t),
    "Chi2": lambda t: dist.Chi2(t),
    "CoalescentTimes": lambda t: dist.CoalescentTimes(t * torch.arange(3.0)),
    "ContinuousBernoulli": lambda t: dist.ContinuousBernoulli(logits=t),
    "Delta": lambda t: dist.Delta(t),
    "Dirichlet": lambda t: dist.Dirichlet(t * ones(3)),
    "DirichletMultinomial": lambda t: dist.DirichletMultinomial(t * ones(3), 10),
    "DiscreteHMM": lambda t: dist.DiscreteHMM(
        logits(t)[:2], eye(2), dist.Normal(t * tensor([-1.0, 1.0]), 1.0), duration=4
    ),
    "Empirical": lambda t: dist.Empirical(t * torch.arange(4.0), zeros(4)),
    "Exponential": lambda t: dist.Exponential(t),
    "FisherSnedecor": lambda t: dist.FisherSnedecor(t, t + 4),
    "FoldedDistribution": lambda t: dist.FoldedDistribution(dist.Normal(t, 1.0)),
    "Gamma": lambda t: dist.Gamma(t, 1.0),
    "GammaPoisson": lambda t: dist.GammaPoisson(t, 1.0),
    "GaussianHMM": lambda t: dist.GaussianHMM(*hmm_parts(t), duration=3),
    "GaussianScaleMixture": lambda t: dist.GaussianScaleMixture(t * ones(2), zeros(2), ones(2)),
    "GeneralizedPareto": lambda t: dist.GeneralizedPareto(t, 1.0, 0.2),
    "Geometric": lambda t: dist.Geometric(logits=t),
    "Gumbel": lambda t: dist.Gumbel(t, t),
    "HalfCauchy": lambda t: dist.HalfCauchy(t),
    "HalfNormal": lambda t: dist.HalfNormal(t),
    "IndependentHMM": lambda t: dist.IndependentHMM(
        dist.GaussianHMM(
            dist.Normal(0.0, t).expand([2, 1]).to_event(1),
            ones(2, 1, 1, 1),
            dist.Normal(zeros(2, 1, 1), 1.0).to_event(1),
            ones(2, 1, 1, 1),
            dist.Normal(zeros(2, 1, 1), 1.0).to_event(1),
            duration=3,
        )
    ),
    "InverseGamma": lambda t: dist.InverseGamma(t, 1.0),
    "Kumaraswamy": lambda t: dist.Kumaraswamy(t, 2.0),
    "LKJ": lambda t: dist.LKJ(3, t),
    "LKJCholesky": lambda t: dist.LKJCholesky(3, t),
    "Laplace": lambda t: dist.Laplace(t, t),
    "LogNormal": lambda t: dist.LogNormal(t, t),
    "Logistic": lambda t: dist.Logistic(t, t),
    "LogisticNormal": lambda t: dist.LogisticNormal(t * ones(2), ones(2)),
    "LowRankMultivariateNormal": lambda t: dist.LowRankMultivariateNormal(t * ones(3), ones(3, 1), t * ones(3)),
    "MaskedMixture": lambda t: dist.MaskedMixture(
        tensor([True, False]), dist.Normal(t, 1.0).expand([2]), dist.Cauchy(t, 1.0).expand([2])
    ).to_event(1),
    "MixtureOfDiagNormals": lambda t: dist.MixtureOfDiagNormals(t * eye(2), ones(2, 2), logits(t)[:2]),
    "MixtureOfDiagNormalsSharedCovariance": lambda t: dist.MixtureOfDiagNormalsSharedCovariance(
        t * eye(2), ones(2), logits(t)[:2]
    ),
    "MixtureSameFamily": lambda t: dist.MixtureSameFamily(
        dist.Categorical(logits=logits(t)), dist.Exponential(t * ones(3))
    ),
    "Multinomial": lambda t: dist.Multinomial(10, logits=logits(t)),
    "MultivariateNormal": lambda t: dist.MultivariateNormal(t * ones(2), t * eye(2)),
    "MultivariateStudentT": lambda t: dist.MultivariateStudentT(t, t * ones(2), eye(2)),
    "NanMaskedMultivariateNormal": lambda t: dist.NanMaskedMultivariateNormal(t * ones(2), t * eye(2)),
    "NanMaskedNormal": lambda t: dist.NanMaskedNormal(t, t),
    "NegativeBinomial": lambda t: dist.NegativeBinomial(t, logits=-t),
    "Normal": lambda t: dist.Normal(t, t),
    "OMTMultivariateNormal": lambda t: dist.OMTMultivariateNormal(t * ones(2), eye(2)),
    "OneHotCategorical": lambda t: dist.OneHotCategorical(logits=logits(t)),
    "OneHotCategoricalStraightThrough": lambda t: dist.OneHotCategoricalStraightThrough(logits=logits(t)),
    "OneOneMatching": lambda t: dist.OneOneMatching(t * eye(3)),
    "OneTwoMatching": lambda t: dist.OneTwoMatching(t * ones(4, 2)),
    "OrderedLogistic": lambda t: dist.OrderedLogistic(t, tensor([-1.0, 1.0])),
    "Pareto": lambda t: dist.Pareto(t, t + 1),
    "Poisson": lambda t: dist.Poisson(t),
    "ProjectedNormal": lambda t: dist.ProjectedNormal(t * ones(2)),
    "RelaxedBernoulli": lambda t: dist.RelaxedBernoulli(tensor(0.5), logits=t),
    "RelaxedBernoulliStraightThrough": lambda t: dist.RelaxedBernoulliStraightThrough(tensor(0.5), logits=t),
    "RelaxedOneHotCategorical": lambda t: dist.RelaxedOneHotCategorical(tensor(0.5), logits=logits(t)),
    "RelaxedOneHotCategoricalStraightThrough": lambda t: dist.RelaxedOneHotCategoricalStraightThrough(
        tensor(0.5), logits=logits(t)
    ),
    "SineBivariateVonMises": lambda t: dist.SineBivariateVonMises(t, 0.0, t, 1.0, 0.1 * t),
    "SineSkewed": lambda t: dist.SineSkewed(dist.VonMises(t * ones(1), ones(1)).to_event(1), 0.3 * ones(1)),
    "SkewLogistic": lambda t: dist.SkewLogistic(t, t, 2.0),
    "SoftAsymmetricLaplace": lambda t: dist.SoftAsymmetricLaplace(t, t, 1.5),
    "SoftLaplace": lambda t: dist.SoftLaplace(t, t),
    "SpanningTree": lambda t: dist.SpanningTree(t * torch.arange(3.0)),
    "Stable": lambda t: dist.Stable(1.5, 0.1, t, t),
    "StableWithLogProb": lambda t: dist.StableWithLogProb(1.5, 0.1, t, t),
    "StudentT": lambda t: dist.StudentT(t, t, t),
    "TransformedDistribution": lambda t: dist.TransformedDistribution(
        dist.Exponential(t), [dist.transforms.AffineTransform(t, 2.0)]
    ),
    "Uniform": lambda t: dist.Uniform(-t, t),
    "VonMises": lambda t: dist.VonMises(t, t),
    "Weibull": lambda t: dist.Weibull(t, t),
    "Wishart": lambda t: dist.Wishart(t + 2, eye(2)),
    "ZeroInflatedDistribution": lambda t: dist.ZeroInflatedDistribution(dist.Poisson(t + 1), gate=tensor(0.3)),
    "ZeroInflatedNegativeBinomial": lambda t: dist.ZeroInflatedNegativeBinomial(t, logits=-t, gate=tensor(0.3)),
    "ZeroInflatedPoisson": lambda t: dist.ZeroInflatedPoisson(t, gate=tensor(0.3)),
}


OTHERS = {
    "CoalescentTimesWithRate": "has no draws",
    "ExpandedDistribution": "what expand returns",
    "ExponentialFamily": "a base class",
    "ExtendedBetaBinomial": "has no draws",
    "ExtendedBinomial": "has no draws",
    "GammaGaussianHMM": "has no draws",
    "GaussianMRF": "has no draws",
    "GroupedNormalNormal": "has no draws",
    "ImproperUniform": "has no draws",
    "Independent": "what to_event returns",
    "LKJCorrCholesky": "an alias of LKJCholesky, deprecated",
    "LinearHMM": "has no density",
    "LogNormalNegativeBinomial": "has no draws",
    "MaskedDistribution": "what mask returns",
    "Rejector": "a sampler by user's functions",
    "TorchDistribution": "a base class",
    "TruncatedPolyaGamma": "has no draws in a plate: Pyro expands it to a list",
    "Unit": "that of pyro.factor",
    "VonMises3D": "has no draws",
}


def known() -> set[str]:
    """The names of Pyro's distributions."""
    classes = {name: found for name, found in vars(dist).items() if inspect.isclass(found)}
    return {name for name, found in classes.items() if issubclass(found, Distribution)}

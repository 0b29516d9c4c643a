"""Diagnostics: the posterior in ArviZ, whether it can be trusted, and how generated rows compare with data."""

from ppgen.diagnostics.adaptation import AdaptationRisk, adaptation_risk, feature_spread, features_collapsed
from ppgen.diagnostics.annealed import annealed_evidence
from ppgen.diagnostics.arviz import to_arviz
from ppgen.diagnostics.calibration import Calibration, Path, Ranks, calibrate, sbc, sbc_of, tarp
from ppgen.diagnostics.estimate import estimate
from ppgen.diagnostics.importance import Evidence, Importance, evidence, khat_threshold, resample, weigh_up
from ppgen.diagnostics.labels import Agreement, label_agreement
from ppgen.diagnostics.loo import loo, loo_pit
from ppgen.diagnostics.modes import Coverage, Label, Missing, ModeCoverage, coverage, missing, mode_coverage
from ppgen.diagnostics.predictive import pit, predictive_check
from ppgen.diagnostics.pulled_back import PulledBack, pulled_back
from ppgen.diagnostics.pyramid import PyramidDistance, laplacian_pyramid, pyramid_distance, pyramid_noise
from ppgen.diagnostics.restarts import rhat
from ppgen.diagnostics.two_sample import TwoSample, classifier_test, energy_test, ks_test, mmd_test
from ppgen.diagnostics.verdict import Verdict, diagnose
from ppgen.diagnostics.versions import from_netcdf, to_netcdf

__all__ = [
    "AdaptationRisk",
    "Agreement",
    "Calibration",
    "Coverage",
    "Evidence",
    "Importance",
    "Label",
    "Missing",
    "ModeCoverage",
    "Path",
    "PulledBack",
    "PyramidDistance",
    "Ranks",
    "TwoSample",
    "Verdict",
    "adaptation_risk",
    "annealed_evidence",
    "calibrate",
    "classifier_test",
    "coverage",
    "diagnose",
    "energy_test",
    "estimate",
    "evidence",
    "feature_spread",
    "features_collapsed",
    "from_netcdf",
    "khat_threshold",
    "ks_test",
    "label_agreement",
    "laplacian_pyramid",
    "loo",
    "loo_pit",
    "missing",
    "mmd_test",
    "mode_coverage",
    "pit",
    "predictive_check",
    "pulled_back",
    "pyramid_distance",
    "pyramid_noise",
    "resample",
    "rhat",
    "sbc",
    "sbc_of",
    "tarp",
    "to_arviz",
    "to_netcdf",
    "weigh_up",
]

"""Comparison of generated rows with data: two-sample tests, coverage, metrics, labels and domain adaptation."""

from ppgen.evaluation.adaptation_scores import SCORERS, TransferPredictions, transfer_scores
from ppgen.evaluation.base_space import BaseSpaceTest, base_space_test
from ppgen.evaluation.coverage import (
    Coverage,
    Label,
    ModeCoverage,
    UncoveredData,
    coverage,
    mode_coverage,
    uncovered_data,
)
from ppgen.evaluation.domains import (
    AdaptationRisk,
    adaptation_risk,
    contrast_inverted,
    feature_spread,
    features_collapsed,
)
from ppgen.evaluation.estimate import estimate
from ppgen.evaluation.image_features import ImageFeatures, train_image_features
from ppgen.evaluation.labels import Agreement, label_agreement
from ppgen.evaluation.pyramid import PyramidDistance, laplacian_pyramid, pyramid_distance, pyramid_noise
from ppgen.evaluation.table_quality import TableQuality, table_quality
from ppgen.evaluation.two_sample import TwoSample, classifier_test, energy_test, ks_test, mmd_test

__all__ = [
    "SCORERS",
    "AdaptationRisk",
    "Agreement",
    "BaseSpaceTest",
    "Coverage",
    "ImageFeatures",
    "Label",
    "ModeCoverage",
    "PyramidDistance",
    "TableQuality",
    "TransferPredictions",
    "TwoSample",
    "UncoveredData",
    "adaptation_risk",
    "base_space_test",
    "classifier_test",
    "contrast_inverted",
    "coverage",
    "energy_test",
    "estimate",
    "feature_spread",
    "features_collapsed",
    "ks_test",
    "label_agreement",
    "laplacian_pyramid",
    "mmd_test",
    "mode_coverage",
    "pyramid_distance",
    "pyramid_noise",
    "table_quality",
    "train_image_features",
    "transfer_scores",
    "uncovered_data",
]

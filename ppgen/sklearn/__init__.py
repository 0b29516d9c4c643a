"""Estimators for scikit-learn: generative models, and classifiers and regressors around Pyro programs."""

from ppgen.sklearn.generative_model import GenerativeModel
from ppgen.sklearn.programs import Classifier, Regressor

__all__ = ["Classifier", "GenerativeModel", "Regressor"]

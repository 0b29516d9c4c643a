"""Can the posterior be trusted? The posterior in ArviZ, its verdict, leave-one-out, calibration, predictive checks."""

from ppgen.diagnostics.arviz import to_arviz
from ppgen.diagnostics.calibration import Calibration, ECDFBand, Ranks, calibrate, sbc, sbc_of, tarp
from ppgen.diagnostics.checks import CHECKS, describe_checks
from ppgen.diagnostics.evidence_bounds import bidirectional_ais
from ppgen.diagnostics.loo import loo, loo_pit
from ppgen.diagnostics.predictions import predict
from ppgen.diagnostics.predictive import pit, predictive_check
from ppgen.diagnostics.restarts import rhat
from ppgen.diagnostics.stock_pyro import from_pyro, from_pyro_svi
from ppgen.diagnostics.verdict import Verdict, diagnose
from ppgen.posterior.importance import (
    EvidenceEstimate,
    Importance,
    evidence,
    importance_summary,
    khat_threshold,
    resample,
)
from ppgen.utils.arviz_versions import from_netcdf, to_netcdf

__all__ = [
    "CHECKS",
    "Calibration",
    "ECDFBand",
    "EvidenceEstimate",
    "Importance",
    "Ranks",
    "Verdict",
    "bidirectional_ais",
    "calibrate",
    "describe_checks",
    "diagnose",
    "evidence",
    "from_netcdf",
    "from_pyro",
    "from_pyro_svi",
    "importance_summary",
    "khat_threshold",
    "loo",
    "loo_pit",
    "pit",
    "predict",
    "predictive_check",
    "resample",
    "rhat",
    "sbc",
    "sbc_of",
    "tarp",
    "to_arviz",
    "to_netcdf",
]

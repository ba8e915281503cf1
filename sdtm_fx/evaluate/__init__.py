"""Evaluation: what merging does to the images of a pipeline, against the dense ones, a judge, and the MACs."""

from __future__ import annotations

from sdtm_fx.evaluate.harness import evaluate
from sdtm_fx.evaluate.interval import Estimate
from sdtm_fx.evaluate.result import Evaluation, RowResult
from sdtm_fx.evaluate.row import Judge, Row
from sdtm_fx.evaluate.sampling import Sampling
from sdtm_fx.evaluate.store import Store

__all__ = ["Estimate", "Evaluation", "Judge", "Row", "RowResult", "Sampling", "Store", "evaluate"]

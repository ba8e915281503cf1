"""Searching the scale from dense through merging to forecast for the best recipe at a budget."""

from sdtm_fx.tuning.goal import Goal
from sdtm_fx.tuning.tune import Finalist, Tuned, tune

__all__ = ["Finalist", "Goal", "Tuned", "tune"]

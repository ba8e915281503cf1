"""How redundant the tokens of a model are, where and when: what stage boundaries and ratios are chosen by."""

from __future__ import annotations

from sdtm_fx.analyze.measure import Settings
from sdtm_fx.analyze.recorder import Recorder, recording
from sdtm_fx.analyze.result import Analysis, Features
from sdtm_fx.analyze.run import Sampling, analyze
from sdtm_fx.analyze.suggest import Suggestion, suggest

__all__ = [
    "Analysis",
    "Features",
    "Recorder",
    "Sampling",
    "Settings",
    "Suggestion",
    "analyze",
    "recording",
    "suggest",
]

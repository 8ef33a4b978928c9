"""Entropy test-time adaptation (ETTA) to one case, for any MONAI evaluator and inferer."""

from scripts.etta.handler import ETTAHandler, ETTAInferer
from scripts.etta.settings import ETTASettings

__all__ = ["ETTAHandler", "ETTAInferer", "ETTASettings"]

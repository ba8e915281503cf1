"""Rewriting: from captured block graphs to the functions that blocks run in each variant."""

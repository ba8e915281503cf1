"""Inspecting: what a model that no recipe is written for consists of, found by structure and by trying."""

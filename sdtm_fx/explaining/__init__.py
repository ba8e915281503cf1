"""Explaining: what a rewriting merges, where, in which steps, and what that saves."""

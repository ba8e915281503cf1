"""Compiling: one graph per phase, whole models or block by block, and what deploys them."""

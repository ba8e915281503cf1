"""The cost of a step in multiply-accumulates, dense and merged."""

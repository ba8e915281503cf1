"""The demonstration: dense and rewritten pipelines side by side, with what was merged and what it saved."""

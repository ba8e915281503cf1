"""Recipes as YAML files: what is merged in a model, where, and when."""

"""Recipes that follow publications rather than our own measurements."""

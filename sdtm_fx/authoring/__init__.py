"""Authoring: a first recipe for a model that none was written for, drafted from an inspection and tried out."""

"""Backbone and heads, weights files, checkpoints."""

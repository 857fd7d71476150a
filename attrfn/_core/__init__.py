"""Mechanisms that every method stands on: trees, targets, copies, splits, derivatives."""

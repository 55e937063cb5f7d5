"""Adapters of the rows of a step, from disk to the pass."""

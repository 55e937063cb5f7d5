"""Tunings described by ``ExperimentOptions``: run them, or look before running."""

"""Training: one loop for every tuning method, from train records to a learned adapter.

The entry is ``luthier.training.loop.tune``; who wants to watch implements
``luthier.training.callbacks.base.TrainingCallback``.
"""

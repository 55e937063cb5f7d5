"""Several trainings in shared passes of one base model."""

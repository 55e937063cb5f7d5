"""Who takes part in a step, and when."""

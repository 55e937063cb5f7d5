"""What runs a model over the rows of a step."""

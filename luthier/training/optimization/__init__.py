"""From gradients to changed parameters: what is learned, by which optimizer, at which rate."""

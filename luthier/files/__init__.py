"""What touches the disk with care: names that stay inside roots, whole folders, plain tensors."""

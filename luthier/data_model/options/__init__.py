"""What a training is asked for, spelled once."""

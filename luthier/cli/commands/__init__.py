"""The commands, one a file; ``app`` puts them together."""

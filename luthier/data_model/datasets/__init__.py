"""Rows of files as training records: their shape, their chains, what is held out."""

"""Heads: what a tuned model says instead of text."""

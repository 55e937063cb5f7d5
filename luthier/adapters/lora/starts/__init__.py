"""Starts of LoRA that look at data."""

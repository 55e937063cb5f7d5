"""Adapters before the input: soft prompts and prefixes."""

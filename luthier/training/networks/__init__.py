"""The base model with an adapter, as the loop runs it."""

"""Layers of Llama's kind in passes of our own."""

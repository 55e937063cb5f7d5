"""What runs encoder-decoder models."""

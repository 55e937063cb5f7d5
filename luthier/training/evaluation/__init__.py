"""What a training makes of held-out rows, and which evaluation was best."""

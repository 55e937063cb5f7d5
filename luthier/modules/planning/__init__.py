"""What a training will do, whatever it tunes."""

"""LoRA, rsLoRA and DoRA."""

"""Which adapters are on the device, and how they come there."""

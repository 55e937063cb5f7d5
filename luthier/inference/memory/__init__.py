"""Keys and values of the rows of a batch."""

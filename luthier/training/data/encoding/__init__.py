"""Records to token ids and what is learned of them."""

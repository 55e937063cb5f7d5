"""Examples that are kept in files."""

"""Files of examples, read row by row: JSON lines, JSON, CSV, parquet, plain text, folders, zips."""

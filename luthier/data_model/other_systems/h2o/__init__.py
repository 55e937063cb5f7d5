"""The settings of H2O LLM Studio, and what becomes of each here."""

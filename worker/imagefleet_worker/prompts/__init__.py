"""Prompts as A1111 reads them: parsed, scheduled, cut into windows, encoded."""

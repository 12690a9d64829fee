"""LoRAs and other adapters, merged into warm pipelines and unmerged bit for bit."""

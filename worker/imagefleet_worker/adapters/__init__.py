"""LoRAs and their kin, merged into warm pipelines and taken out again bit for bit."""

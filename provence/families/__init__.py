"""Checkpoints of several families, read natively: safetensors and JSON only, no code of a folder runs."""

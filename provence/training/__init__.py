"""Training a pruner: labelled sets and a base encoder in, a folder that `Pruner.load` reads out.

PARQUET -> bank (token ids, no leak) -> windows -> train (teacher) -> distil -> train (student) -> native folder, card
"""

"""Proof that pruning lost nothing: the same model on the rows kept, on random rows and on all, seed by seed."""

"""Scores of single rows."""

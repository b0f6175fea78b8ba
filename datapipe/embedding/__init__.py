"""Rows to vectors."""

"""Rows that are in the data already, or must not be."""

"""Thin adapters: a frozen config and a stage for each step of a run."""

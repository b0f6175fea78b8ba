"""Measure pruners and their baselines on sets with sentence gold: sets -> protocol -> scores -> metrics -> report."""

"""Texts to units with exact character offsets."""

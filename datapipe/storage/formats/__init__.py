"""One file a format: how its records become batches of one schema."""

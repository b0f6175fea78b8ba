"""What a worker can do with a model."""

"""What is on disk: sources, row ids, vectors, sorted shards, stage directories."""

"""Which instructions heal a damaged language model: clusters of skills, damage by cluster, allocation, recovery."""

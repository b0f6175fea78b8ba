"""From scores to the rows kept."""

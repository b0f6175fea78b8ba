"""What to do with a data set, how far, and why: from a look at it and the evidence to a command."""

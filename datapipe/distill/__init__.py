"""Knowledge distillation for pruned sets: teachers' soft labels beside the kept rows, and how to train on them."""

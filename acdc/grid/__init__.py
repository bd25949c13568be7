"""A grid of methods, tasks and models: which method a text means, what one cell measures, and what is stored."""

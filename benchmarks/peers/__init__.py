"""Comparisons with other people's implementations, each run in an environment of its own on our model and prompts."""

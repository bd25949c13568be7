"""Models compiled from programs, so that the edges they use are known: weights, prompts, and the true edge sets."""

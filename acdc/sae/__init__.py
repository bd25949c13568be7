"""Sparse autoencoders and transcoders: training, file formats, what they are worth and what their features are."""

"""Trained networks in the files of other programs: one module a format.

Each has `write(network, path)` and `load(path)`, which returns what the format's own
runtime makes of it: [N, 28, 28, 1] uint8 images to [N, 10] float32 probabilities.
"""

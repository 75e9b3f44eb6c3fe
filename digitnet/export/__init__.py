"""Exports trained networks to the file formats of other programs.

Each format's module has `write(network, path)` and `load(path)`. `load` returns a function
that runs the file in the format's own runtime: [N, 28, 28, 1] uint8 images to [N, 10]
float32 probabilities.
"""

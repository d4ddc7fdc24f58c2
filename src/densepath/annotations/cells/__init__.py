"""Cells of images and slides: points with a class, from a detector or from files, as a prior of methods."""

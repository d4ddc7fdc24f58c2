"""Semantic segmentation: a class for each pixel of images, and for each voxel of volumes."""

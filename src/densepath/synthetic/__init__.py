"""Procedural images with exact ground truth."""

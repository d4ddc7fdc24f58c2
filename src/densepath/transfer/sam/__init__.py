"""Segment Anything, without training."""

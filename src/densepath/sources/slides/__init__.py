"""Whole slides: levels, µm per pixel, and parts of them read at any resolution."""

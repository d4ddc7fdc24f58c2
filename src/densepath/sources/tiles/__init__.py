"""Tiles of whole slides: where the tissue is, and the rectangles in µm that cover it."""

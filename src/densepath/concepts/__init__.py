"""Sources of concepts: what the regions of an image are."""

"""Who says what the regions of an image are."""

"""Features of whole images."""

"""Results of whole slides: where they lie, and pictures of them."""

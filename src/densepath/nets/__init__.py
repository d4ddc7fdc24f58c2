"""Networks: backbones that give their stages, heads, and the weights that go in and out of them."""

"""Networks: backbones with stages, heads, and loading and saving of weights."""

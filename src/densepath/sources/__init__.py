"""Where pixels come from: image files, packed tiles, and the batches of a run."""

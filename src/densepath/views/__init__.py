"""From batches of images to batches of views, on the device that trains."""

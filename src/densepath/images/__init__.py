"""Where pixels come from: folders of images, packed stores, procedural tissue, instance annotations."""

"""Classification of images: fine-tuning, linear classifiers, their scores, and their predictions."""

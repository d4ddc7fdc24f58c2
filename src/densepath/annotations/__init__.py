"""What is known of each image: classes, label maps, objects."""

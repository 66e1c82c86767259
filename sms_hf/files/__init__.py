"""What lies on disk, and which of it is the model's."""

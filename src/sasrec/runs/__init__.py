"""What a training run is on disk."""

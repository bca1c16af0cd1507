"""Trackers of experiments: a training's settings, curves and metrics in MLflow, W&B, Trackio or TensorBoard."""

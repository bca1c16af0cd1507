"""A model for others: an ONNX graph, item vectors, the lists of all users."""

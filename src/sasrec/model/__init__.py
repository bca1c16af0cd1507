"""SASRec itself: the network, its losses, its weights, and the published checkpoints."""

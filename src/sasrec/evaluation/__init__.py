"""Measuring: protocols, intervals, what lists are like, and whether one model is better than another."""

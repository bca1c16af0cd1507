"""From features to order: ties, ranks, top-k, the compiled index, and what can be ranked by."""

"""From any source to one frame of events."""

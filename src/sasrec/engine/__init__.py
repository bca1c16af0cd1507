"""What trains and encodes: one protocol, the compiled core and torch behind it."""

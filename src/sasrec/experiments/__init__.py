"""Many runs: one setting over several seeds, presets by splits."""

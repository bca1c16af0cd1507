"""What all other packages use: errors, settings, presets, safe files, threads, the choice of the compiled core."""

"""What every room needs: errors, settings, files written whole or not at all, threads, which compiled variant runs."""

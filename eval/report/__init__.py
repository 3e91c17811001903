"""The comparison of runs: tables, pictures, one page."""

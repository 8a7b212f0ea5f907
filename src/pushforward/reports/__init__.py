"""HTML reports of runs: one self-contained file each."""

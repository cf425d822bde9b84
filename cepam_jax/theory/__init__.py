"""Plain formulas that runs are held against."""

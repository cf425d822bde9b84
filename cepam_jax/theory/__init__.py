"""Formulas with which the results of runs are compared."""

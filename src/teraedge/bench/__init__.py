"""Measuring: which machine, which versions, and result files in one form."""

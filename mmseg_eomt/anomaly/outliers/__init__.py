"""Outliers that are cut out and pasted: sources, places, and the transform."""

"""Datasets of anomalies: published sets by name, and held-out classes of any other."""

"""Metrics of anomaly scores: of pixels in constant memory, and of components."""

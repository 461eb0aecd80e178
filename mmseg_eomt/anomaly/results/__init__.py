"""What comes of anomaly scores: evaluations and reports, maps, thresholds, files for benchmarks."""

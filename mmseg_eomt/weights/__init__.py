"""Public weights: where they are read from, the formats they are in, and how they are fitted to a model."""

"""Reading public checkpoints into the plain ViT."""

"""PEFT adapters on a segmentor."""

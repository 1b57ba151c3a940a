"""Backbones, heads and the layouts of their checkpoints."""

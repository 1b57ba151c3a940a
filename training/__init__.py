"""Foveal's offline half: trains, evaluates and exports self-supervised vision models."""

"""Foveal's gateway: embeddings, attention maps and nearest neighbours over HTTP."""

__version__ = "0.1.0"

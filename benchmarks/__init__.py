"""Measurements, each a command: both sides in turn in one run, medians of several rounds."""

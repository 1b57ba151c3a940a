"""Finding what does not belong in an image, and where, after training on normal images only."""

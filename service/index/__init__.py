"""Collections of vectors, and the nearest neighbours in them."""

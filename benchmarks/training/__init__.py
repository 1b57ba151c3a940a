"""One training step, beside the published one and beside other packages."""

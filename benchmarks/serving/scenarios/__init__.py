"""One scenario a module: what the servers go through, and what is told of it."""

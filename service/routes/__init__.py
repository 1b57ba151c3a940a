"""The HTTP routes: each parses, calls the pipeline or the index, and answers."""

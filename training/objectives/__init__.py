"""What is minimised: one module an objective."""

"""The papers' protocols: what a frozen model is worth."""

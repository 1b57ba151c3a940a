"""Images and the crops that are made of them."""

"""Other servers, each as its documentation advises; they run in an environment of their own."""

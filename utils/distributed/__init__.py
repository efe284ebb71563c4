"""Several processes: start them, let them find each other, and end them together."""

"""The systems that are compared: how each is got, started and asked."""

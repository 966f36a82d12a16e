"""The models we run: one decoder whose architectures differ in data."""

"""A cluster that faults are done to, and what is asked of it meanwhile."""

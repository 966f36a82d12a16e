"""An engine whose steps only take time, behind everything that real ones are behind."""

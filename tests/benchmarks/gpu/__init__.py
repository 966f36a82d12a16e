"""What the GPU path reaches of what the device can do. Needs neither Ray nor a checkpoint."""

"""Many engines: placement, tensor-parallel groups, token transport, autoscaling."""

"""Ray Serve deployments, HTTP API and command line."""

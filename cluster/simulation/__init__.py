"""The cluster as discrete events: our placement and our scheduler, with simulated steps and time.

Nothing here is a copy of what serves: `cluster.board` places, `engine.core` schedules and keeps
blocks. Simulated are the clock, the seconds that a step takes, and the network.
"""

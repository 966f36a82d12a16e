"""How many replicas a deployment needs: pure, with clock and memory handed in and out.

What the replicas tell is in `demand`, what follows from it in `load`, the rules in `policy`, and
what was decided, with all its numbers, in `decision`.
"""

"""Triton kernels, one operation a file. Import them where triton is known to be installed.

Arithmetic is in float32; the model's dtype appears at loads, matrix products and stores alone.
Launch shapes come from the files' own tables: nothing is tuned while serving, so a start compiles
the same kernels every time and a persistent Triton cache has them all.
"""

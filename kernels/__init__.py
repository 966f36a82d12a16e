"""Operations on tensors: Triton on CUDA, torch elsewhere. Knows no request and no model.

This file stays a docstring: transformers imports a package of this name when it finds one
(see tests/test_house_rules.py), so importing it must have no effect and carry no version.
"""

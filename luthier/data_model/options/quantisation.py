"""How the frozen weights of a base model are held."""

from __future__ import annotations

NONE = "none"
INT8 = "int8"
NF4 = "nf4"
FP4 = "fp4"
QUANTISATIONS = (NONE, INT8, NF4, FP4)

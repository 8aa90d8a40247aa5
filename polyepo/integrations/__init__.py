"""Poly-EPO inside other trainers: `polyepo.integrations.trl` and `polyepo.integrations.verl`, an extra each."""

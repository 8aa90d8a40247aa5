"""Poly-EPO inside other trainers: `polyepo.integrations.trl` and `polyepo.integrations.verl`, each with its own needs."""

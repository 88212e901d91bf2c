"""Solvers of the sampling ODE, one per file (the table is ``sfd.names.SAMPLERS``)."""

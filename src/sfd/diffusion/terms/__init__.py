"""Terms of the loss, one per file (the table is ``sfd.names.LOSS_TERMS``). None depends on another (arXiv 2512.04926)."""

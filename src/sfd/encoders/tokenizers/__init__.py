"""Tokenizers that are fitted to the training images here, one per file (the table is ``sfd.names.TOKENIZERS``)."""

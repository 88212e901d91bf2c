"""A registered model over HTTP, with a page to play with it (``sfd serve``)."""

"""``sfd import``: published weights, read strictly and without running anything that their files hold, in our layout."""

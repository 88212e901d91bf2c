"""The command ``sfd audit``: copies of training images, and membership inference."""

"""Every option of the platform, declared once."""

from sfd.params.schema import *  # noqa

"""`sfd doctor`: what is stale, missing, unreachable or unsynced, and what to type."""

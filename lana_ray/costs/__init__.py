"""What networks cost on a target: read, timed, stored, and made into a table that adds up."""

"""The one exception that is a user's to mend."""


class UserError(Exception):
    """A mistake in what the user gave: one line that names the thing and the mend.

    The command line prints it on stderr and exits with status 2; anything else is a bug of ours and
    keeps its traceback.
    """

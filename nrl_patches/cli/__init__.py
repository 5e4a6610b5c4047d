"""The command `nrl-patches`, one module per subcommand that needs more than a few lines.

Nothing else imports it.
"""

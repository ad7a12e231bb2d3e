"""The command `mimi-bridge`: one file a subcommand."""

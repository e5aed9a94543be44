"""One recipe a subcommand: typed parameters in, an exit code out."""

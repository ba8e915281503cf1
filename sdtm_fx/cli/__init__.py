"""The command `sdtm-fx`, one file per subcommand."""

"""Sites: which modules a recipe names, and where they stand in the graph of their block."""

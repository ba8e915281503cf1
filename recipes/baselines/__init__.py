"""Methods of other papers, one recipe per method and model."""

"""sdtm_fx."""

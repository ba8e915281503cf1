"""Methods of other papers, one recipe per method and model: ``<method>-<model>``.

What each costs, beside what its source says, and what there is no recipe for, is in docs/baselines.md.
"""

"""Right and wrong answers to every exercise: `RIGHT` and `WRONG` of each lab, run by tests/test_checks.py."""

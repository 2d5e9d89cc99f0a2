"""Asking models: predictions on the test sets, on this machine or at an endpoint, and single questions."""

"""Evaluation: models scored on scans whose truth is known, and by readers."""

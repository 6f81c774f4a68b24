"""Thick-slice scans in, thin-slice scans out; see README.md."""

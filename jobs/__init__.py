"""What users run: `python -m jobs.NAME`."""

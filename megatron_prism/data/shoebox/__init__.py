"""A corpus that needs no download: text found on every Python installation, and generated problems with solutions."""

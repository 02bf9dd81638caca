"""The data sets, one file each, and what reads, splits and keeps their images."""

"""What measures: the table against other methods (compare), speed and memory (speed)."""

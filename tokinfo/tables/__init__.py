"""Tables: what every cell found, and what follows from it."""

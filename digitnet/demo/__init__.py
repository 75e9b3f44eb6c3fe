"""A page to draw on, and the small server that reads what is drawn."""

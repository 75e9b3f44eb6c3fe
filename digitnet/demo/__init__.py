"""A web page to draw digits on, and the small server that reads them."""

"""Archives that can be searched: codes, names and places of images, and the page of them."""

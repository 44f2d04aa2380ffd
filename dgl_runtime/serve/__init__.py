"""dgl-serve: galleries over HTTP, with a page to search and watch them in a browser."""

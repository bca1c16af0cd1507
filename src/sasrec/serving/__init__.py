"""A model over HTTP: requests, batches, the application, connections, processes, and the web page."""

"""An index over HTTP: search, write, look up, measure; see `consilience.serve.app.create_app`."""

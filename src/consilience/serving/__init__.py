"""An index over HTTP: search, write, look up, measure; see `consilience.serving.app.create_app`."""

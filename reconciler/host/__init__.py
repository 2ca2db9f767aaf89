"""Effects: one outside thing a file, each the only importer of its library."""

"""Training patches, cut from registered data into one store."""

"""Training patches, cut from registered data into a store."""

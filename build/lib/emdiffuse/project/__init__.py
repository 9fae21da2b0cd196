"""A workflow folder for data of one's own: what `emdiffuse init` looks at, asks, and writes."""

"""A workflow folder for your own data: what `emdiffuse init` inspects, asks and writes."""

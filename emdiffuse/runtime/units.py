"""Units of length, in nanometers, by their names in OME-Zarr and in the configuration."""

NANOMETERS = {
    "picometer": 1e-3,
    "angstrom": 0.1,
    "nanometer": 1.0,
    "micrometer": 1e3,
    "millimeter": 1e6,
    "centimeter": 1e7,
    "meter": 1e9,
}

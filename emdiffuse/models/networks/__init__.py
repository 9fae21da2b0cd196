"""The networks: the published U-Net and the native network."""

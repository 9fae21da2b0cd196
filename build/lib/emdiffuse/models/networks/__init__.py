"""The networks, each as published or as our own."""

"""Stand-in for torchvision, of which the MONAI Label server imports two functions that segmenting never calls."""

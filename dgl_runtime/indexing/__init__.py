"""From a folder of videos to a gallery: find, decode, encode, add."""

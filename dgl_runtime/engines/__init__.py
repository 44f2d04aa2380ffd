"""Inference engines behind one protocol: graphs in, arrays out; they know no bundle."""

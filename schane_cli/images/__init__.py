"""An image set: decoding, splits, random views, corruptions, the loader."""

"""Upper limits of the model's settings."""

# What no network needs, and no machine could build or feed: numbers beyond these are mistakes, found before memory is
# asked for.
MAX_SIDE = 16_384
MAX_CHANNELS = 16_384
MAX_LAYERS = 100
MAX_RESOLUTION = 128
MAX_REGIONS = 1_000_000
MAX_CATEGORIES = 100_000
MAX_KEYPOINTS = 1000
MAX_LISTED = 100
MAX_BOXES = 10_000
MAX_PIXEL = 1e6

MAX_PIXELS = 178_956_970
"""Images of more are not decoded unless a run asks for them: above it Pillow, too, refuses to, as one may be made to
fill the memory (twice its `Image.MAX_IMAGE_PIXELS`)."""

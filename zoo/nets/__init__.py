"""The nets, one family a module. ``zoo.registry`` imports them, which registers them."""

"""Pure functions of one image: static sizes, padded and masked, jit- and vmap-safe."""

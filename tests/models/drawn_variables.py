import jax
import numpy as np


def draw(init, *inputs, seed=0):
    """Variables as `init(key, *inputs)` shapes them: He-scaled kernels, small biases.

    Every layer matters, and nothing is compiled: JAX's own generator takes seconds.
    """
    rng = np.random.default_rng(seed)

    def leaf(path, shape):
        name = path[-1].key
        if name in ("scale", "var"):
            return np.ones(shape.shape, np.float32)
        spread = np.sqrt(2 / np.prod(shape.shape[:-1])) if name == "kernel" else 0.1
        return normal(rng, *shape.shape) * np.float32(spread)

    return jax.tree.map_with_path(leaf, jax.eval_shape(init, jax.random.key(0), *inputs))


def normal(rng, *shape):
    return rng.normal(size=shape).astype(np.float32)

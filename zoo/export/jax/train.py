"""Go on training in JAX: python train.py data.npz, with arrays ``images`` (uint8, NHWC, or clips NTHWC) and ``labels``.

The optimizer is that of the recipes of rescalenet-zoo: SGD with Nesterov's momentum, weight decay on weights only, and
smaller rates for multipliers and biases from data.
"""

import sys

import jax
import numpy as np
import optax
from flax import nnx
from rescalenet_flax import load, parameter_groups, save, standardised

EPOCHS, BATCH, RATE, DECAY = 10, 128, 0.02, 5e-4


def main() -> None:
    """Train the net on the pairs of a file, and write ``trained.safetensors``, which rescalenet-zoo loads too."""
    data = np.load(sys.argv[1])
    images, labels = data["images"], data["labels"]
    net, header = load("model.safetensors")  # other classes: load("model.safetensors", classes=["cat", "dog"])

    # the optimizer
    steps = EPOCHS * (len(images) // BATCH)
    schedule = optax.cosine_onecycle_schedule(steps, RATE)

    def sgd(factor: float = 1.0, decay: float = 0.0) -> optax.GradientTransformation:
        return optax.chain(
            optax.add_decayed_weights(decay), optax.sgd(lambda step: factor * schedule(step), 0.9, nesterov=True)
        )

    rules = {"weights": sgd(decay=DECAY), "others": sgd(), "data_biases": sgd(0.3), "multipliers": sgd(0.3)}
    rule = optax.chain(optax.clip_by_global_norm(1.0), optax.partition(rules, parameter_groups(net)))
    optimizer = nnx.Optimizer(net, rule, wrt=nnx.Param)

    @nnx.jit
    def step(net: nnx.Module, optimizer: nnx.Optimizer, x: jax.Array, y: jax.Array) -> jax.Array:
        def loss_of(net: nnx.Module) -> jax.Array:
            return optax.softmax_cross_entropy_with_integer_labels(net(x), y).mean()

        loss, gradients = nnx.value_and_grad(loss_of)(net)
        optimizer.update(net, gradients)
        return loss

    # the steps
    numbers = np.random.default_rng(0)
    for epoch in range(EPOCHS):
        order, losses = numbers.permutation(len(images)), []
        for start in range(0, len(order) - BATCH + 1, BATCH):
            chosen = order[start : start + BATCH]
            losses.append(step(net, optimizer, standardised(images[chosen], header), labels[chosen]))
        print(f"epoch {epoch}: loss {np.mean(losses):.4f}")
    save(net, {**header, "meta": {}}, "trained.safetensors")


if __name__ == "__main__":
    main()

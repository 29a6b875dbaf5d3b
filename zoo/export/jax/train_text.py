"""Go on training in JAX: python train.py pairs.npz, with the token arrays ``source`` (N, S) and ``target`` (N, T).

A target is </s> (2), the tokens and </s>; sentences are padded at the end with 1. The folder's vocabularies make tokens
of text. Weight decay acts on weights only; multipliers and biases from data have smaller rates.
"""

import sys

import jax
import numpy as np
import optax
from flax import nnx
from rescalenet_flax import PAD, load, parameter_groups, save

EPOCHS, BATCH, RATE, DECAY = 10, 64, 5e-4, 1e-4


def main() -> None:
    """Train the net on the pairs of a file, and write ``trained.safetensors``, which rescalenet-zoo loads too."""
    data = np.load(sys.argv[1])
    source, target = data["source"].astype(np.int32), data["target"].astype(np.int32)
    net, header = load("model.safetensors")

    # the optimizer
    steps = EPOCHS * (len(source) // BATCH)
    schedule = optax.warmup_cosine_decay_schedule(0.0, RATE, steps // 10, steps)

    def adam(factor: float = 1.0, decay: float = 0.0) -> optax.GradientTransformation:
        return optax.adamw(lambda step: factor * schedule(step), 0.9, 0.98, weight_decay=decay)

    rules = {"weights": adam(decay=DECAY), "others": adam(), "data_biases": adam(0.3), "multipliers": adam(0.3)}
    optimizer = nnx.Optimizer(net, optax.partition(rules, parameter_groups(net)), wrt=nnx.Param)

    @nnx.jit
    def step(net: nnx.Module, optimizer: nnx.Optimizer, source: jax.Array, target: jax.Array) -> jax.Array:
        def loss_of(net: nnx.Module) -> jax.Array:
            labels, counts = target[:, 1:], target[:, 1:] != PAD
            losses = optax.softmax_cross_entropy_with_integer_labels(net(source, target[:, :-1]), labels)
            return losses.mean(where=counts)

        loss, gradients = nnx.value_and_grad(loss_of)(net)
        optimizer.update(net, gradients)
        return loss

    # the steps
    numbers = np.random.default_rng(0)
    for epoch in range(EPOCHS):
        order, losses = numbers.permutation(len(source)), []
        for start in range(0, len(order) - BATCH + 1, BATCH):
            chosen = order[start : start + BATCH]
            losses.append(step(net, optimizer, source[chosen], target[chosen]))
        print(f"epoch {epoch}: loss {np.mean(losses):.4f}")
    save(net, {**header, "meta": {}}, "trained.safetensors")


if __name__ == "__main__":
    main()

"""The devices of `fedprox_synthetic.py`: their data, and their local rounds, all methods and devices side by side. torch on the CPU.

Synthetic(alpha, beta) is that of Li et al. 2020 (FedProx, section 5.1), drawn in the order of the authors' program: for device k,
u_k ~ N(0, alpha) and B_k ~ N(0, beta); W_k and b_k ~ N(u_k, 1), the mean v_k ~ N(B_k, 1), x ~ N(v_k, Sigma) with Sigma_jj = j^-1.2, and
y = argmax(W_k^T x + b_k). With alpha = beta = 1, both the models and the data differ from device to device.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from zk0desk.training.fedprox import add_proximal_gradient

DEVICES, FEATURES, CLASSES = 30, 60, 10
ROWS = FEATURES + 1
SIZE = ROWS * CLASSES
"""Values of the model, multinomial logistic regression: W, row by row, then b."""


@dataclass(frozen=True)
class Synthetic:
    """Data of all devices. `train` and `test` hold x of shape (samples, 60) and y of shape (samples,) for each."""

    train: list[tuple[np.ndarray, np.ndarray]]
    test: list[tuple[np.ndarray, np.ndarray]]


def synthetic(seed: int, alpha: float = 1.0, beta: float = 1.0) -> Synthetic:
    """Synthetic(alpha, beta); nine tenths of each device's samples train."""
    draw = np.random.RandomState(seed)
    counts = draw.lognormal(4, 2, DEVICES).astype(int) + 50
    u, B = draw.normal(0, alpha, DEVICES), draw.normal(0, beta, DEVICES)
    spread = np.diag(np.arange(1, FEATURES + 1) ** -1.2)
    v = np.array([draw.normal(B[device], 1, FEATURES) for device in range(DEVICES)])
    train, test = [], []
    for device, count in enumerate(counts):
        W, b = draw.normal(u[device], 1, (FEATURES, CLASSES)), draw.normal(u[device], 1, CLASSES)
        x = draw.multivariate_normal(v[device], spread, count)
        y = np.argmax(x @ W + b, axis=1)
        x, cut = x.astype(np.float32), int(0.9 * count)
        train.append((x[:cut], y[:cut]))
        test.append((x[cut:], y[cut:]))
    return Synthetic(train, test)


class Devices:
    """Trains `methods` models on the devices at once: each has its own weights, learning rate and mu, and sees the same batches.

    Models lie side by side, CLASSES columns each; a feature that is always 1 makes b the last row of W.
    """

    def __init__(self, data: Synthetic, methods: int, batch: int) -> None:
        self.counts = [len(y) for _, y in data.train]
        self._methods, self._batch = methods, batch
        x, y = (np.concatenate([part[each] for part in data.train]) for each in (0, 1))
        # The last row counts nothing: it fills up a device's last batch.
        self._x = torch.from_numpy(np.concatenate([_with_one(x), np.zeros((1, ROWS), np.float32)]))
        self._y = torch.from_numpy(np.eye(CLASSES, dtype=np.float32)[np.append(y, 0)])
        self._first = np.cumsum([0, *self.counts])
        x, y = (np.concatenate([part[each] for part in data.test]) for each in (0, 1))
        self._test_x, self._test_y = torch.from_numpy(_with_one(x)), torch.from_numpy(y)

    def train(
        self, weights: np.ndarray, chosen: list[int], epochs: list[int], lr: list[float], mu: list[float], seed: list[int]
    ) -> np.ndarray:
        """Local SGD of each of the `chosen` devices for its `epochs`, from the methods' `weights`, float32 of shape (methods, `SIZE`).

        `lr` and `mu` are the methods'. Gives the updates, of shape (methods, chosen, `SIZE`). The proximal step is the product's.
        """
        rows, parts, order = self._plan(chosen, epochs, seed)
        active = (parts[:, :, 0, 0] > 0).sum(1).tolist()
        anchor = torch.from_numpy(weights).view(-1, ROWS, CLASSES).permute(1, 0, 2).reshape(1, ROWS, -1)
        W = anchor.repeat(len(chosen), 1, 1)
        begin = 0
        while begin < len(active):
            count = active[begin]  # devices are in the order of their steps: those that go on are the first ones
            end = begin + active[begin:].count(count)
            self._steps(W[:count], anchor, rows[begin:end, :count], parts[begin:end, :count], lr, mu)
            begin = end
        updates = (W - anchor).view(-1, ROWS, self._methods, CLASSES).permute(2, 0, 1, 3).flatten(2)
        found = np.empty(updates.shape, np.float32)
        found[:, order] = updates.numpy()
        return found

    def _plan(self, chosen: list[int], epochs: list[int], seed: list[int]) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
        """For each step and device, the rows of its batch and what each counts in its mean; devices with most steps first."""
        steps = [count * -(-self.counts[device] // self._batch) for device, count in zip(chosen, epochs, strict=True)]
        order = sorted(range(len(chosen)), key=lambda place: -steps[place])
        rows = np.full((max(steps), len(chosen), self._batch), len(self._x) - 1)
        parts = np.zeros((max(steps), len(chosen), self._batch, 1), np.float32)
        for row, place in enumerate(order):
            device = chosen[place]
            draw = np.random.default_rng([*seed, device])
            for epoch in range(epochs[place]):
                mixed = self._first[device] + draw.permutation(self.counts[device])
                for number, begin in enumerate(range(0, len(mixed), self._batch), epoch * -(-len(mixed) // self._batch)):
                    batch = mixed[begin : begin + self._batch]
                    rows[number, row, : len(batch)] = batch
                    parts[number, row, : len(batch)] = 1 / len(batch)
        return torch.from_numpy(rows), torch.from_numpy(parts), order

    def _steps(
        self, W: torch.Tensor, anchor: torch.Tensor, rows: torch.Tensor, parts: torch.Tensor, lr: list[float], mu: list[float]
    ) -> None:
        """SGD steps in place; the gradient of softmax regression in closed form."""
        devices, batch = len(W), self._batch
        slope = torch.zeros_like(W)
        rates = torch.tensor(lr, dtype=torch.float32).repeat_interleave(CLASSES)
        own = []
        for method in range(self._methods):
            columns = slice(CLASSES * method, CLASSES * (method + 1))
            parameter = torch.nn.Parameter(W[..., columns])
            parameter.grad = slope[..., columns]
            own.append(([parameter], [anchor[..., columns]]))
        with torch.no_grad():
            for step in range(len(rows)):
                picked = rows[step].flatten()
                x = self._x.index_select(0, picked).view(devices, batch, ROWS)
                wanted = self._y.index_select(0, picked).view(devices, batch, 1, CLASSES)
                errors = torch.bmm(x, W).view(devices, batch, self._methods, CLASSES).softmax(-1)
                errors = errors.sub_(wanted).view(devices, batch, -1).mul_(parts[step])
                torch.bmm(x.transpose(1, 2), errors, out=slope)
                for (parameters, anchors), each in zip(own, mu, strict=True):
                    add_proximal_gradient(parameters, anchors, each)
                W.addcmul_(slope, rates, value=-1)

    def losses(self, weights: np.ndarray) -> list[float]:
        """The mean cross-entropy over all devices' training samples, for each method's weights."""
        x, y = self._x[:-1], self._y[:-1]
        return [float(-(torch.log_softmax(x @ each, 1) * y).sum() / len(x)) for each in self._models(weights)]

    def accuracies(self, weights: np.ndarray) -> list[float]:
        """The share of all devices' test samples that are classified rightly, for each method's weights."""
        return [float(((self._test_x @ each).argmax(1) == self._test_y).float().mean()) for each in self._models(weights)]

    def _models(self, weights: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(weights).view(-1, ROWS, CLASSES)


def _with_one(x: np.ndarray) -> np.ndarray:
    return np.concatenate([x, np.ones((len(x), 1), np.float32)], axis=1)

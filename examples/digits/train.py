"""Train the digit network on a CPU in a few seconds. Run from the repository's root:

    python -m examples.digits.train --output DIR

DIR gets `digits.pt` (a state dict, for the handler) and `digits-typed.pt` (TorchScript with its softmax, for the typed
backend). A network that is worse than promised is not written.
"""

import argparse
from pathlib import Path

import torch
from torch import nn

from examples.digits.dataset import Digits, load_split, one_of_each
from examples.digits.model import DigitNet

SEED = 0
EPOCHS = 20
ROWS_PER_STEP = 64
LEARNING_RATE = 4e-3
ACCURACY_MIN = 0.97


def as_batch(digits: Digits) -> torch.Tensor:
    """The images as the network takes them: [rows, 1, 8, 8]."""
    return torch.from_numpy(digits.images).unsqueeze(1)


def train(training: Digits) -> DigitNet:
    """A network fitted to `training`; on one machine, the same one every time."""
    torch.manual_seed(SEED)
    network = DigitNet()
    optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
    images, labels = as_batch(training), torch.from_numpy(training.labels)
    for _ in range(EPOCHS):
        for rows in torch.split(torch.randperm(len(labels)), ROWS_PER_STEP):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(network(images[rows]), labels[rows])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return network.eval()


def accuracy(network: nn.Module, digits: Digits) -> float:
    """The share of `digits` that the network reads right."""
    with torch.inference_mode():
        read = network(as_batch(digits)).argmax(dim=1)
    return float((read == torch.from_numpy(digits.labels)).float().mean())


def save(network: DigitNet, output: Path) -> None:
    """Both files that the archives are made of."""
    torch.save(network.state_dict(), output / "digits.pt")
    scripted = torch.jit.script(nn.Sequential(network, nn.Softmax(dim=1)).eval())
    torch.jit.save(scripted, str(output / "digits-typed.pt"))


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the digit network and save it.")
    parser.add_argument(
        "--output", type=Path, required=True, help="an existing directory for digits.pt and digits-typed.pt"
    )
    output: Path = parser.parse_args().output

    split = load_split()
    network = train(split.training)
    held_out = accuracy(network, split.held_out)
    print(f"accuracy on {len(split.held_out.labels)} held-out digits: {held_out:.4f}")
    if held_out < ACCURACY_MIN:
        raise SystemExit(f"The network reads fewer than {ACCURACY_MIN:.0%} of the held-out digits: not saved.")
    if accuracy(network, one_of_each(split.held_out)) < 1:
        raise SystemExit("The network misreads one of the ten pictures that the example ships: not saved.")
    save(network, output)


if __name__ == "__main__":
    main()

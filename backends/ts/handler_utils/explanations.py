"""What a model's answer hangs on: integrated gradients, with captum when it is installed, else by the same rule here.

    attribution = (input - baseline) * integral over a in [0, 1] of d model(baseline + a * (input - baseline))[target] / d input

The rule is captum's default: the integral is a Gauss-Legendre sum over `n_steps` points of the path (M. Sundararajan, A. Taly,
Q. Yan, "Axiomatic Attribution for Deep Networks", 2017). All points of all rows go through the model as one batch. captum is
imported by the first explanation and never by a model that is loaded: that takes seconds.
"""

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch

from ringserve.backends.ts.handler_utils.preprocess.rows import refusal

CLASS_MAX = 2**63 - 1  # the largest index of a tensor


class IntegratedGradients:
    """What of the answer each number of the input accounts for. Takes the arguments of captum's class that handlers use."""

    def __init__(self, forward_func: Callable[..., torch.Tensor]) -> None:
        self.forward_func = forward_func

    def attribute(
        self,
        inputs: torch.Tensor,
        baselines: torch.Tensor | float = 0.0,
        target: Any = None,
        additional_forward_args: Any = None,
        n_steps: int = 50,
    ) -> torch.Tensor:
        """For float `inputs` [rows, ...], the same shape. `target` is the class that is explained, one for all rows or a list
        of one for each; None for a model with one output. Raises ValueError or IndexError for targets the model has not."""
        more = _as_tuple(additional_forward_args)
        return _integrated(
            lambda points: self.forward_func(points, *(_repeated(each, n_steps) for each in more)),
            inputs,
            _like(baselines, inputs),
            target,
            n_steps,
        )


class LayerIntegratedGradients:
    """What of the answer each number that leaves `layer` accounts for: the way to explain inputs that are no numbers, as words
    are none. The path is between what the layer makes of the baseline and what it makes of the input."""

    def __init__(self, forward_func: torch.nn.Module, layer: torch.nn.Module) -> None:
        if isinstance(forward_func, torch.jit.ScriptModule):
            raise TypeError("A TorchScript model lets nobody look into its layers: only an eager one can be explained.")
        self.forward_func = forward_func
        self.layer = layer

    def attribute(
        self,
        inputs: torch.Tensor,
        baselines: torch.Tensor | float = 0.0,
        target: Any = None,
        additional_forward_args: Any = None,
        n_steps: int = 50,
    ) -> torch.Tensor:
        """Shaped like the layer's output. For `target` see `IntegratedGradients`."""
        more = _as_tuple(additional_forward_args)
        end = self._output_of_layer(inputs, more)
        start = self._output_of_layer(_like(baselines, inputs), more)
        arguments = [_repeated(each, n_steps) for each in (inputs, *more)]

        def answer(points: torch.Tensor) -> Any:
            hook = self.layer.register_forward_hook(lambda *_: points)
            try:
                return self.forward_func(*arguments)
            finally:
                hook.remove()

        return _integrated(answer, end, start, target, n_steps)

    def _output_of_layer(self, inputs: torch.Tensor, more: Sequence[Any]) -> torch.Tensor:
        seen: list[torch.Tensor] = []
        hook = self.layer.register_forward_hook(lambda _module, _inputs, output: seen.append(output.detach()))
        try:
            with torch.no_grad():
                self.forward_func(inputs, *more)
        finally:
            hook.remove()
        if not seen:
            raise ValueError("The model's answer does not go through the layer that is to be explained.")
        return seen[-1]


def integrated_gradients(model: Any) -> Any:
    """captum's `IntegratedGradients` of the model if captum is installed, else ours."""
    if find_spec("captum") is None:
        return IntegratedGradients(model)
    from captum.attr import IntegratedGradients as Captums

    return Captums(model)


def layer_integrated_gradients(model: Any, layer: Any) -> Any:
    """captum's `LayerIntegratedGradients` if captum is installed, else ours. Raises TypeError for a TorchScript model."""
    if find_spec("captum") is None or isinstance(model, torch.jit.ScriptModule):
        return LayerIntegratedGradients(model, layer)
    from captum.attr import LayerIntegratedGradients as Captums

    return Captums(model, layer)


def explained(explainer: Any, inputs: torch.Tensor, target: Any, **how: Any) -> torch.Tensor:
    """`explainer.attribute`. Raises `PredictionException` (400) for a class that the model does not have."""
    try:
        attributions: torch.Tensor = explainer.attribute(inputs, target=target, **how)
    except IndexError as error:
        raise refusal(f"The model has no class {target} to explain: {error}") from error
    return attributions


def row_targets(rows: Sequence[Any]) -> list[int]:
    """The class that each request wants explained, by its input `target`; 0 where it names none.

    Raises `PredictionException` (400) for what is no whole number.
    """
    return [_as_class(row.get("target")) if isinstance(row, dict) else 0 for row in rows]


def as_one_target(targets: Sequence[int]) -> int | list[int]:
    """The class as handlers expect it, a number, unless the rows of the batch want different ones."""
    return targets[0] if len(set(targets)) == 1 else list(targets)


def _as_class(value: Any) -> int:
    """A form field is bytes, a JSON value a number."""
    if not value:
        return 0
    try:
        if isinstance(value, float) and not value.is_integer():
            raise ValueError
        number = int(value)
        if abs(number) > CLASS_MAX:
            raise ValueError
        return number
    except (TypeError, ValueError):
        shown = repr(value)[:80]
        raise refusal(
            f'The input "target" is the number of the class to explain, a whole number; it is {shown}.'
        ) from None


def _integrated(
    answer: Callable[[torch.Tensor], torch.Tensor], end: torch.Tensor, start: torch.Tensor, target: Any, n_steps: int
) -> torch.Tensor:
    """The weighted sum of gradients along the straight path, times its length. Points are the outer, rows the inner order."""
    places, weights = np.polynomial.legendre.leggauss(n_steps)  # on [-1, 1], which is twice as long as [0, 1]
    alphas = (places + 1) / 2
    path = end - start
    with torch.enable_grad():
        points = torch.cat([start + float(alpha) * path for alpha in alphas]).detach().requires_grad_()
        (gradients,) = torch.autograd.grad(_chosen(answer(points), target, n_steps).sum(), points)
    by_point = gradients.reshape(n_steps, *end.shape)
    steps = torch.as_tensor(weights / 2, dtype=end.dtype, device=end.device)
    attributions: torch.Tensor = torch.tensordot(steps, by_point, dims=1) * path
    return attributions


def _chosen(answers: torch.Tensor, target: Any, n_steps: int) -> torch.Tensor:
    """Of every point's answer the number that is explained."""
    if target is None:
        if answers.numel() != len(answers):
            raise ValueError(f"The model has several outputs, {list(answers.shape[1:])}: a target is needed.")
        return answers
    if isinstance(target, int):
        return answers[:, target]
    index = torch.as_tensor(target, device=answers.device).repeat(n_steps)
    return answers[torch.arange(len(answers), device=answers.device), index]


def _like(baselines: torch.Tensor | float, inputs: torch.Tensor) -> torch.Tensor:
    return baselines if isinstance(baselines, torch.Tensor) else torch.full_like(inputs, baselines)


def _as_tuple(arguments: Any) -> tuple[Any, ...]:
    if arguments is None:
        return ()
    return arguments if isinstance(arguments, tuple) else (arguments,)


def _repeated(value: Any, times: int) -> Any:
    """A tensor's rows, as often as there are points; anything else goes to the model as it is."""
    if not isinstance(value, torch.Tensor) or value.ndim == 0:
        return value
    return value.repeat(times, *[1] * (value.ndim - 1))

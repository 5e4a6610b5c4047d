"""What the source of a model's ``forward`` says about its loss: a mean, or divided by a number that it is handed."""

from __future__ import annotations

import ast
import functools
import inspect
import re
import textwrap
from collections.abc import Callable
from typing import Any

from nrl_patches.patches._shared import token_counts
from nrl_patches.patches._shared.written import written

LOSS_FUNCTION = "self.loss_function"

MEANS = ("CrossEntropyLoss", "MSELoss", "BCEWithLogitsLoss")

NO_LOSS = re.compile(r"shift|decoder_input_ids|^labels\.|^torch\.|\.pad$|^isinstance$|Error$|^logger\.|^warnings\.")
"""Names of what does something else with labels than compute a loss."""

SHIFTED = re.compile(r"\blabels\[(\.\.\.|:), 1:\]")


def drops_number(model: Any) -> bool:
    """Tell whether a model takes the number of tokens, and returns a mean loss all the same.

    Args:
        model: The model, unwrapped.

    Returns:
        False where nobody can tell, as of a loss function of the user's.
    """
    forward = token_counts.forward_of(model)
    if forward is None or not _drops_number(forward):
        return False
    return not _calls_own_loss(forward) or _has_loss_of_transformers(model)


def takes_mean(model: Any) -> bool:
    """Tell whether the loss of a model is a mean over labels, as long as nobody hands it their number.

    Args:
        model: The model, unwrapped.

    Returns:
        False where nobody can tell, as of a loss function of the user's.
    """
    forward = token_counts.forward_of(model)
    if forward is None or not _takes_mean(forward) or _has_own_padding(forward):
        return False
    return not _calls_own_loss(forward) or _has_loss_of_transformers(model)


def is_wrong_about_itself(model: Any) -> bool:
    """Tell whether the class of a model denies that it takes the number of labels, and hands it to its only loss.

    Args:
        model: A ``PreTrainedModel``, unwrapped.

    Returns:
        False for anything else, and for a class whose source cannot be read.
    """
    from transformers.loss.loss_utils import ForCausalLMLoss

    says = next((c for c in type(model).__mro__ if "accepts_loss_kwargs" in vars(c)), None)
    if says is None or vars(says)["accepts_loss_kwargs"] is not False or "accepts_loss_kwargs" in vars(model):
        return False
    forward = vars(says).get("forward")
    if forward is None or token_counts.forward_of(model) is not forward:
        return False
    return getattr(model, "loss_function", None) is ForCausalLMLoss and _hands_keywords_to_loss(forward)


def shifts_labels(model: Any) -> bool:
    """Tell whether no token predicts the first label of a row, in a model whose loss is a mean.

    Args:
        model: The model, unwrapped.

    Returns:
        False for a model whose labels are those of the tokens beside them, or of rows.
    """
    from transformers.loss.loss_utils import ForCausalLMLoss

    forward = token_counts.forward_of(model)
    return _shifts(forward) or (_calls_own_loss(forward) and model.loss_function is ForCausalLMLoss)


def router_coefficient(model: Any) -> str | None:
    """Return the attribute of a model by which it multiplies the loss of its router.

    Args:
        model: The model, unwrapped.

    Returns:
        None if it adds no such loss to one that it divides by the number of tokens.
    """
    forward = token_counts.forward_of(model)
    name = None if forward is None else _router_coefficient(forward)
    return name if name is not None and isinstance(getattr(model, name, None), (int, float)) else None


@functools.cache
def _drops_number(forward: Callable[..., Any]) -> bool:
    function = _parsed(forward)
    if function is None or function.args.kwarg is None or "num_items_in_batch" in ast.unparse(function):
        return False
    return _takes_mean(forward) and not any(_gets_keywords(call, function) for call in _losses(function))


@functools.cache
def _takes_mean(forward: Callable[..., Any]) -> bool:
    function = _parsed(forward)
    losses = set() if function is None else _losses(function)
    return bool(losses) and not any(_takes_labels(n) for n in ast.walk(function or ast.Pass()) if n not in losses)


@functools.cache
def _has_own_padding(forward: Callable[..., Any]) -> bool:
    """Tell whether a loss leaves out other labels than those of -100, which the Trainer does not count."""
    left_out = [n for n in ast.walk(_parsed(forward) or ast.Pass()) if isinstance(n, ast.keyword)]
    return any(n.arg == "ignore_index" and ast.unparse(n.value) != "-100" for n in left_out)


@functools.cache
def _hands_keywords_to_loss(forward: Callable[..., Any]) -> bool:
    function = _syntax(forward)
    if function is None or function.args.kwarg is None:
        return False
    stored = [n.id for n in ast.walk(function) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
    losses = [n.value for n in ast.walk(function) if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "loss"]
    calls = [loss for loss in losses if not isinstance(loss, ast.Constant)]
    if len(calls) != 1 or not isinstance(calls[0], ast.Call) or stored.count("loss") != len(losses):
        return False
    handed = {ast.unparse(a) for a in calls[0].args} | {ast.unparse(k.value) for k in calls[0].keywords}
    own = {"labels", function.args.kwarg.arg}
    return ast.unparse(calls[0].func) == LOSS_FUNCTION and own <= handed and not own.intersection(stored)


@functools.cache
def _calls_own_loss(forward: Callable[..., Any]) -> bool:
    function = _parsed(forward)
    return function is not None and bool(_calls_of(function, LOSS_FUNCTION))


@functools.cache
def _shifts(forward: Callable[..., Any]) -> bool:
    return bool(SHIFTED.search(ast.unparse(_parsed(forward) or ast.Pass())))


@functools.cache
def _router_coefficient(forward: Callable[..., Any]) -> str | None:
    function = _parsed(forward)
    if function is None or not any(_gets_keywords(call, function) for call in _calls_of(function, LOSS_FUNCTION)):
        return None
    added = [n.value for n in ast.walk(function) if isinstance(n, ast.AugAssign) and ast.unparse(n.target) == "loss"]
    if len(added) != 1 or not isinstance(added[0], ast.BinOp) or not isinstance(added[0].op, ast.Mult):
        return None
    factor, of = ast.unparse(added[0].left), ast.unparse(added[0].right)
    return factor.removeprefix("self.") if factor.startswith("self.") and of.startswith("aux_loss") else None


@functools.cache
def _parsed(forward: Callable[..., Any]) -> ast.FunctionDef | None:
    """Return the syntax of transformers' own code, or that of a checkpoint."""
    module = getattr(inspect.unwrap(forward), "__module__", None) or ""
    return _syntax(forward) if module.startswith(("transformers.", "transformers_modules.")) else None


def _syntax(forward: Callable[..., Any]) -> ast.FunctionDef | None:
    try:
        (function,) = ast.parse(textwrap.dedent(inspect.getsource(written(forward)))).body
    except (OSError, SyntaxError, TypeError, ValueError):  # No source, as of a model that was compiled to bytecode.
        return None
    return function if isinstance(function, ast.FunctionDef) else None


def _gets_keywords(call: ast.Call, function: ast.FunctionDef) -> bool:
    values = [*call.args, *(keyword.value for keyword in call.keywords)]
    return function.args.kwarg is not None and function.args.kwarg.arg in {ast.unparse(value) for value in values}


def _calls_of(function: ast.AST, name: str) -> list[ast.Call]:
    return [n for n in ast.walk(function) if isinstance(n, ast.Call) and ast.unparse(n.func) == name]


def _losses(function: ast.AST) -> set[ast.Call]:
    return {*_calls_of(function, LOSS_FUNCTION), *_mean_losses(function)}


def _mean_losses(function: ast.AST) -> list[ast.Call]:
    """Return the calls of torch's losses that take the mean, as they do by default.

    Args:
        function: The syntax of a function that makes the losses that it calls.
    """
    made = [
        ast.unparse(n.targets[0])
        for n in ast.walk(function)
        if isinstance(n, ast.Assign) and isinstance(n.value, ast.Call) and _is_mean(n.value)
    ]
    return [call for name in made for call in _calls_of(function, name)]


def _takes_labels(node: ast.AST) -> bool:
    """Tell whether a piece of syntax is a call that may compute a loss of the labels it is given.

    Args:
        node: The syntax; what only shifts labels, or makes a decoder's input of them, computes none.
    """
    if not isinstance(node, ast.Call) or NO_LOSS.search(ast.unparse(node.func)):
        return False
    given = [*node.args, *(keyword.value for keyword in node.keywords)]
    return any(isinstance(n, ast.Name) and n.id.endswith("labels") for value in given for n in ast.walk(value))


def _has_loss_of_transformers(model: Any) -> bool:
    """Tell whether the loss function of a model is one of transformers', and not a user's or its class's own.

    Args:
        model: The model, unwrapped.
    """
    from transformers import PreTrainedModel

    here = inspect.getattr_static(type(model), "loss_function", None)
    return here is vars(PreTrainedModel).get("loss_function") and "_loss_function" not in vars(model)


def _is_mean(made: ast.Call) -> bool:
    options = {keyword.arg for keyword in made.keywords}
    return ast.unparse(made.func).split(".")[-1] in MEANS and not made.args and options <= {"ignore_index"}

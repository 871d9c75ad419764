"""Errors travel between processes: of loaders, of Ray, of pools."""

import copy
import importlib
import pickle
import pkgutil

import pytest

import maskrcnn_core
from maskrcnn_core.errors import ImageError, UserError


def every_error() -> list[type[UserError]]:
    """With those that any module may define."""
    for module in pkgutil.walk_packages(maskrcnn_core.__path__, "maskrcnn_core."):
        if ".kernels." not in module.name:  # some need Triton
            importlib.import_module(module.name)
    found, left = [], [UserError]
    while left:
        one = left.pop()
        found.append(one)
        left += one.__subclasses__()
    return found


def test_every_error_arrives_as_it_was_sent() -> None:
    kinds = every_error()
    assert len(kinds) >= 6
    for kind in kinds:
        text = f"{kind.__name__}: got 'ä\x1b', expected %s"
        error = kind("too_large", text) if issubclass(kind, ImageError) else kind(text)
        for arrived in (pickle.loads(pickle.dumps(error)), copy.deepcopy(error)):
            assert type(arrived) is kind
            assert str(arrived) == text
            assert vars(arrived) == vars(error)
            with pytest.raises(kind, match="expected %s"):
                raise arrived

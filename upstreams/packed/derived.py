"""Values that are computed from a module's tensors and kept until a tensor changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

from torch import Tensor, nn

T = TypeVar("T")


class Derived(Generic[T]):
    """A value computed from the tensors of a module, such as weights in the kernel's layout.

    It is computed again after a tensor was loaded, moved, replaced or written in place. A copy starts without a value.
    """

    def __init__(self) -> None:
        self._value: T | None = None
        self._stores: list[dict[str, Any]] = []
        self._tensors: list[Tensor] = []  # kept, so that the memory of an old tensor is not given to a new one
        self._state: list[int] = []

    def of(self, module: nn.Module, compute: Callable[[], T]) -> T:
        """Return compute(), or what it returned before if no tensor of `module` has changed since."""
        if self._value is None or self._state != _state(self._present()):
            self._stores = [store for part in module.modules() for store in (part._parameters, part._buffers)]
            self._tensors = self._present()
            self._state = _state(self._tensors)
            self._value = compute()
        return self._value

    def _present(self) -> list[Tensor]:
        return [tensor for store in self._stores for tensor in store.values() if tensor is not None]

    def __deepcopy__(self, memo: Any) -> Derived[T]:
        return Derived()

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return Derived, ()


def _state(tensors: list[Tensor]) -> list[int]:
    """Return the addresses of the tensors and the numbers of writes to them."""
    state = [tensor.data_ptr() for tensor in tensors]
    # Tensors made in inference mode count no writes: nothing outside that mode may write to them.
    state += [0 if tensor.is_inference() else tensor._version for tensor in tensors]
    return state

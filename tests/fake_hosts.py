"""Several hosts of a run inside one process: threads that talk through a dictionary instead of
JAX's coordination service.
"""

import collections
import concurrent.futures
import threading

import jax

from densegrpo_jax.runtime.hosts import Hosts


class Service:
    """The calls of the coordination service that `Hosts` makes."""

    def __init__(self, count):
        self._values, self._changed = {}, threading.Condition()
        self._count, self._here = count, collections.Counter()

    def key_value_set_bytes(self, name, value, allow_overwrite=False):
        with self._changed:
            assert allow_overwrite or name not in self._values, f'{name} is written twice'
            self._values[name] = value
            self._changed.notify_all()

    def key_value_try_get_bytes(self, name):
        if name not in self._values:
            raise jax.errors.JaxRuntimeError(f'NOT_FOUND: {name}')
        return self._values[name]

    def key_value_delete(self, folder):
        with self._changed:
            self._values = {
                name: value for name, value in self._values.items() if not name.startswith(folder)
            }

    def blocking_key_value_get_bytes(self, name, milliseconds):
        with self._changed:
            if not self._changed.wait_for(lambda: name in self._values, milliseconds / 1000):
                raise jax.errors.JaxRuntimeError(f'DEADLINE_EXCEEDED: {name}')
            return self._values[name]

    def wait_at_barrier(self, name, milliseconds):
        with self._changed:
            self._here[name] += 1
            self._changed.notify_all()
            all_here = lambda: self._here[name] == self._count
            if not self._changed.wait_for(all_here, milliseconds / 1000):
                raise jax.errors.JaxRuntimeError(f'DEADLINE_EXCEEDED: {name}')


def on_hosts(function, count=2):
    """What `function(hosts)` returned, or the exception it raised, on each of `count` hosts at
    once.
    """
    service = Service(count)

    def on_host(index):
        try:
            return function(Hosts(index, count, service))
        except Exception as error:
            return error

    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        return [
            future.result(timeout=300)
            for future in [pool.submit(on_host, index) for index in range(count)]
        ]

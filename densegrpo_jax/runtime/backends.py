"""Values of flags about processes; imports no jax, which mistakes in flags need not wait for."""

BACKENDS = {'cpu': 'cpu', 'cuda': 'gpu', 'tpu': 'tpu'}  # the flag's value -> JAX's name
HEARTBEAT_SECONDS = 60

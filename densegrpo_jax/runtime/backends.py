"""Values of flags about processes; imports no jax, which mistakes in flags need not wait for."""

BACKENDS = {'cpu': 'cpu', 'cuda': 'gpu', 'tpu': 'tpu'}  # the flag's value -> JAX's name
HEARTBEAT_SECONDS = 60

# Of a GPU's memory; the context, libraries and fragmentation need the rest. JAX takes 0.75.
GPU_SHARE = 0.93

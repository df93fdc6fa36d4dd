"""From-scratch training of the miniature FLUX (command: `python -m densegrpo_jax.pretrain`)."""

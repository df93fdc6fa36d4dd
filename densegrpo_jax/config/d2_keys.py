"""Keys of the direction that guides a reward with an embedding (D2-Align)."""

from __future__ import annotations

from densegrpo_jax.config.key import Key, number, positive, switch, text, whole

D2: dict[str, Key] = {
    'file': text(
        '',
        'Direction file of densegrpo_jax.direction for the one reward with an embedding, as its '
        "option 'direction'.",
    ),
    'pictures': whole(1024, 'Pictures of the base model that a direction is learned from.'),
    'omega': number(1.5, 'ω of D2-Align: 0 is e-, 1 is e+, beyond 1 it extrapolates.', -100, 100),
    'renormalise': switch(False, 'Scale the guided text to unit length, as a cosine has it.'),
    'steps': whole(2000, 'Steps of Adam.'),
    'batch': whole(256, 'Pictures of a step.'),
    'learning_rate': positive(1e-3, 'Learning rate of Adam.'),
    'radius': number(0.0, 'Largest length of the direction; 0: none.', 0),
}

# Read with a file, which must have been learned with them; the others where one is learned.
D2_OF_FILE = ('d2.omega', 'd2.renormalise')
D2_LEARNED = ('d2.pictures', 'd2.steps', 'd2.batch', 'd2.learning_rate', 'd2.radius')

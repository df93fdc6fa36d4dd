"""tiny_ocr with a reward that starts at once, for runs from the command line, on which a reward
cannot be given.
"""

from configs import tiny_ocr


def get_config():
    config = tiny_ocr.get_config()
    config.reward = {'jpeg': {'weight': 1.0}}
    return config

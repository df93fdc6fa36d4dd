"""A stand-in for wandb and trackio: a module that keeps what it is told."""

import types


def wandb_init(
    entity=None, project=None, dir=None, id=None, name=None, config=None, resume=None, settings=None
):
    """Those of wandb 0.31's parameters that matter, by its names."""


def trackio_init(project, name=None, config=None, resume='never', embed=True):
    """Those of trackio 0.43's parameters that matter, by its names."""


class Run:
    """What `init` returns. fails: name of the method that raises."""

    def __init__(self, options, told, fails=''):
        self.options, self.told, self.fails, self.finished = options, told, fails, False

    def log(self, values, step=None):
        if self.fails == 'log':
            raise ConnectionError('the network\nis gone')
        self.told.append((step, values))

    def finish(self):
        self.finished = True


class WandbRun(Run):
    """With the method that only wandb's has."""

    def define_metric(self, name, step_metric=None):
        self.told.append((name, step_metric))


class Image:
    """A picture by its file."""

    def __init__(self, value, caption=None):
        self.value, self.caption = value, caption


def stand_in(name, fails=''):
    """A module of that name; `runs` has every run that it began."""
    module = types.ModuleType(name)
    module.Image, module.runs, module.told = Image, [], []
    signature = {'wandb': wandb_init, 'trackio': trackio_init}[name]

    def init(**options):
        signature(**options)
        if fails == 'init':
            raise TimeoutError('no answer')
        kind = WandbRun if name == 'wandb' else Run
        module.runs.append(kind(options, module.told, fails))
        return module.runs[-1]

    module.init = init
    return module

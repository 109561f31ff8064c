"""A single training step, for tests that look at one."""

from ccdlib.training import Log, train_step


def step(trainee, batch):
    """({name: value} of the loss's terms, right answers, inputs that count) in a step of a Trainee on a Batch."""
    log = Log()
    train_step([trainee], batch, [log])
    return dict(zip(log.names, log.history[-1], strict=True)), log.correct, log.seen

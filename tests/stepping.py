"""A single training step, for tests that look at one, and trainings that are interrupted."""

import pytest

from ccdlib.training import Log, cohort, fit_cohort, train_step


def step(trainee, batch):
    """({name: value} of the loss's terms, right answers, inputs that count) in a step of a Trainee on a Batch."""
    log = Log()
    train_step([trainee], batch, [log])
    return dict(zip(log.names, log.history[-1], strict=True)), log.correct, log.seen


def interrupt(configs, monkeypatch, epochs=1):
    """Train the runs of a cohort, and interrupt them after so many epochs."""
    real, done = cohort.train_epoch, []

    def stops(*given):
        if len(done) == epochs:
            raise KeyboardInterrupt
        done.append(1)
        return real(*given)

    with monkeypatch.context() as patch:
        patch.setattr(cohort, "train_epoch", stops)
        with pytest.raises(KeyboardInterrupt):
            fit_cohort(configs, show="none")

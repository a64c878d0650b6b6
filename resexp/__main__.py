"""``python -m resexp`` is ``resexp``: signals are heard before anything slow is loaded."""

import gc

from resexp.runs.stop import take_signals

take_signals()
# Nearly all that is made in loading torch or pandas stays. By default Python looks through it for
# what does not hundreds of times, half a second in all.
gc.set_threshold(50_000, 20, 20)

from resexp.cli import main  # noqa: E402

if __name__ == "__main__":
    main()

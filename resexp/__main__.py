"""``python -m resexp`` is ``resexp``: signals are heard before anything slow is loaded."""

from resexp.runs.stop import take_signals

take_signals()

from resexp.cli import main  # noqa: E402

if __name__ == "__main__":
    main()

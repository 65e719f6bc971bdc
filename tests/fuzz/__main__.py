"""`make fuzz`: the codec under a coverage-guided fuzzer. Arguments are libFuzzer's: folders of inputs and -flags."""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["envs", "tests.fuzz.codec"]):
    from tests.fuzz.codec import look_at


def main() -> None:
    atheris.Setup(sys.argv, look_at)
    atheris.Fuzz()


if __name__ == "__main__":
    main()

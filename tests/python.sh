#!/usr/bin/env bash
# The Python package: its wheel, with the library that `make` built, in a fresh virtual environment; its tests, its types, the example.
# Needs Python 3.9 or newer with venv, and pip's index for numpy, hatchling (which makes the wheel) and mypy.
set -u
cd "$(dirname "$0")/.."
. tests/steps.sh

: "${OUT:=target/debug}" "${BUILD:=build/dev}" "${LIB:=libmetal_candle.so}" "${PYTHON:=python3}"
what="the Python package"

if ! have "$PYTHON" "$what"; then end "tests/python"; exit; fi
if ! "$PYTHON" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 9))' 2>/dev/null; then
    skip "$what" "$PYTHON is older than 3.9 or has no venv"
    end "tests/python"
    exit
fi

mkdir -p "$BUILD"
stage=$(cd "$BUILD" && pwd)/python
rm -rf "$stage"
"$PYTHON" -m venv "$stage/venv" || exit 1
python=$stage/venv/bin/python
if ! "$python" -m pip install -q --disable-pip-version-check numpy 'hatchling<2' 'mypy<3' 2>"$log"; then
    skip "$what" "pip cannot install numpy, hatchling and mypy: $(tail -n 1 "$log")"
    end "tests/python"
    exit
fi

wheel() { # one for every version of Python, with the notices of what is linked into the library
    packaging/third-party-licenses.py "$stage/licenses" &&
        METAL_CANDLE_LIBRARY=$(cd "$OUT" && pwd)/$LIB METAL_CANDLE_LICENSES=$stage/licenses \
            "$python" -m pip wheel -q --no-deps --no-build-isolation -w "$stage" ./python &&
        ls "$stage"/metal_candle-*-py3-none-*.whl && "$python" -m zipfile -l "$stage"/metal_candle-*-py3-none-*.whl | grep -F metal_candle/THIRD-PARTY-LICENSES
}

no_library() { METAL_CANDLE_LIBRARY=/nowhere.so "$python" -m pip wheel --no-deps --no-build-isolation -w "$stage/none" ./python 2>&1 |
    grep 'METAL_CANDLE_LIBRARY: expected the absolute path of a shared library, found /nowhere.so'; }

install() { "$python" -m pip install -q --no-index --no-deps "$stage"/metal_candle-*.whl; }

tests() { # its last lines say how many there were; without one, nothing ran
    "$python" -W error -X faulthandler -m unittest discover -s python/tests 2>&1 | tee "$stage/tests"
    [ "${PIPESTATUS[0]}" = 0 ] && grep -q '^Ran [1-9][0-9]* tests' "$stage/tests"
}

types() { # of the package as it is installed, and of programs that use it
    "$python" -m mypy --strict -p metal_candle &&
        MYPYPATH=python/tests:python "$python" -m mypy --strict python/*.py python/tests/*.py examples/python/*.py
}

tour() { # the answers, the texts in the order of their meaning, what only the adapter knows
    "$python" examples/python/tour.py >"$stage/tour" || return 1
    cat "$stage/tour"
    [ "$(head -n 1 "$stage/tour")" = 'Appends an element to the back of a collection.' ] &&
        grep -q '… stopped; the conversation goes on: Append' "$stage/tour" &&
        [ "$(sed -n 's/^ *-*[01]\.[0-9]*  //p' "$stage/tour" | head -n 1)" = 'Appends an element to the end of a vector.' ] &&
        grep -q '^with the adapter: *The gray heron, which is never chased from a doorstep.$' "$stage/tour" &&
        ! grep -q '^without the adapter:.*heron' "$stage/tour"
}

step "a wheel" wheel && step "a library that is not there" no_library && step "installs" install && {
    step "unittest" tests && grep '^Ran' "$stage/tests"
    step "types" types
    step "example: tour" tour
}

end "tests/python"

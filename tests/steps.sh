# Sourced by the test scripts: a script is a list of steps; end prints how many passed and fails if one did.
#
#   step "header as C99 by gcc" gcc -std=c99 …    runs the command, shows its output if it fails
#   have g++ "C++ header by g++" && …             a tool that this machine lacks is skipped; with CI=true that is a failure

passed=0
failed=0
skipped=0
log=$(mktemp)
trap 'rm -f "$log"' EXIT

step() {
    local name=$1
    shift
    if "$@" >"$log" 2>&1; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "failed: $name"
        sed 's/^/    /' "$log"
        return 1
    fi
}

have() {
    command -v "$1" >/dev/null 2>&1 && return
    skip "$2" "$1 is missing"
    return 1
}

skip() { # what, why
    echo "skip: $1: $2"
    skipped=$((skipped + 1))
    [ "${CI:-}" != true ] || failed=$((failed + 1))
}

end() {
    echo "$1: $passed passed, $failed failed, $skipped skipped"
    [ "$failed" = 0 ]
}

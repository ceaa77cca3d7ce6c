#!/usr/bin/env bash
# The documentation's site as `make docs` has made it: links, anchors, and every page and the searches in a headless browser.
set -u
cd "$(dirname "$0")/.."
. tests/steps.sh

site=build/docs
if have doxygen "the documentation's site" && have python3 "the documentation's site"; then
    step "the site is made" packaging/docs/build.sh
    browser=$(command -v chromium || command -v chromium-browser || command -v google-chrome || true)
    [ -n "$browser" ] || skip "the documentation in a browser" "chromium is missing"
    # shellcheck disable=SC2086
    step "links, pages and searches" python3 tests/docs.py $site $browser && cat "$log"
fi

end "tests/docs"

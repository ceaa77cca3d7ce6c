#!/usr/bin/env bash
# The documentation's site as `make docs` has made it: links, anchors, and every page and the searches in a headless browser.
set -u
cd "$(dirname "$0")/.."
. tests/steps.sh

site=build/docs
if have doxygen "the documentation's site" && have python3 "the documentation's site"; then
    step "the site is made" packaging/docs/build.sh
    # Without Swift the site is made all the same; who has it says that it has to be there.
    [ "${SWIFT_DOCS:-}" != required ] || step "the Swift package is a part of it" test -e $site/swift/index.html
    browser=$(command -v chromium || command -v chromium-browser || command -v google-chrome ||
        command -v '/Applications/Google Chrome.app/Contents/MacOS/Google Chrome' || true)
    [ -n "$browser" ] || skip "the documentation in a browser" "chromium is missing"
    step "links, pages and searches" python3 tests/docs.py $site ${browser:+"$browser"} && cat "$log"
fi

end "tests/docs"

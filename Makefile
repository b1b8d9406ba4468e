# Everything a person does with this tree; `make help` lists it. What is missing on the machine is
# installed by the target that needs it: Debian packages (as root or through sudo), the rest into
# target/tools.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

TOOLS := $(CURDIR)/target/tools
export PATH := $(TOOLS)/bin:$(TOOLS)/node_modules/.bin:$(PATH)
# In CI the lock file is law.
LOCKED := $(if $(CI),--locked)
# Seconds per fuzz target.
FUZZ_SECONDS ?= 600
# Fuzzing instruments by compiler options that are nightly's; where there is none, they are had of the toolchain at hand.
FUZZ = $(if $(shell cargo +nightly --version 2>/dev/null),cargo +nightly,RUSTC_BOOTSTRAP=1 cargo) fuzz
SCRIPTS = $(shell git ls-files '*.sh' .ci tests/guest/guest-init)

.PHONY: help
help: ## This list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 28

.PHONY: demo
demo: tools-build ## A Linux guest on a Vireo drive, from nothing to a summary table
	@deploy/demo/demo.sh

.PHONY: test
test: tools-build tools-buf tools-pydpu tools-package tools-tmux guest guest-systemd ## Every test: unit, property, whole targets, Linux guests, examples in the docs
	cargo build $(LOCKED) --workspace --bins
	cargo test $(LOCKED) --workspace --no-fail-fast

.PHONY: check
check: check-format check-lint check-docs check-proto check-scripts check-deny check-instructions ## Format, lints, docs, licences, scripts, instruction budget

.PHONY: check-format
check-format: tools-rust
	cargo fmt --all --check

.PHONY: check-lint
check-lint: tools-build tools-rust
	cargo clippy $(LOCKED) --workspace --all-targets -- -D warnings

.PHONY: check-docs
check-docs: tools-build
	RUSTDOCFLAGS="-D warnings" cargo doc $(LOCKED) --workspace --no-deps

.PHONY: check-proto
check-proto: tools-buf
	buf lint proto
	@release=$$(git describe --tags --abbrev=0 --match 'v[0-9]*' 2>/dev/null || true); \
	if [ -n "$$release" ] && git cat-file -e "$$release:proto/buf.yaml" 2>/dev/null; then \
		buf breaking proto --against ".git#tag=$$release,subdir=proto"; \
	else echo "no release yet whose protocols could be broken"; fi

.PHONY: check-scripts
check-scripts: tools-shellcheck
	shellcheck -x $(SCRIPTS)
	shellcheck -s sh tests/guest/initrd-init

# The advisory database is a clone of a repository that not every machine reaches, and its answer
# changes without a change of ours: `cargo deny check advisories` is for a person to run.
.PHONY: check-deny
check-deny: tools-deny
	cargo deny --workspace --all-features check --hide-inclusion-graph licenses bans sources

# Instructions per I/O as callgrind counts them: equal on every machine, so they can be a test.
.PHONY: check-instructions
check-instructions: tools-build tools-valgrind
	bash tests/bench/instructions.sh
	bash shared/nvme-driver/benches/instructions.sh

.PHONY: deb
deb: tools-build tools-package ## The Debian package, in target/debian
	cargo build $(LOCKED) --release --workspace --bins
	@deploy/package/build.sh

.PHONY: bench
bench: tools-build tools-valgrind ## Speed, as a table of ratios to the floor measured in the same run
	cargo build $(LOCKED) --release --workspace --bins
	cargo bench $(LOCKED) -p vireo-tests
	cargo bench $(LOCKED) -p nvme-driver --bench cost
	cargo test $(LOCKED) --release -p ipc --lib -- --ignored --nocapture
	bash shared/nvme-driver/benches/instructions.sh

.PHONY: bench-guest
bench-guest: tools-build guest ## One drive in a guest: the kernel's driver under fio beside `vireo perf` over VFIO
	cargo build $(LOCKED) --release --workspace --bins
	@services/vireo/tests/guest/bench.sh

.PHONY: chaos
chaos: tools-build guest ## Deaths, resets and hostile clients: VIREO_SEEDS (20000) seeds, processes killed CHAOS_ROUNDS (20) times over
	cargo build $(LOCKED) --release --workspace --bins
	VIREO_SEEDS=$(or $(VIREO_SEEDS),20000) cargo test $(LOCKED) --release -p vireo-tests --test simulation
	cargo test $(LOCKED) --release -p ipc --test journal_kill -- --ignored
	for round in $$(seq $(or $(CHAOS_ROUNDS),20)); do \
		cargo test $(LOCKED) --release -p vireo-tests --test processes --test hostile; \
	done

.PHONY: fuzz
fuzz: tools-build tools-fuzz ## Every fuzz target for FUZZ_SECONDS (600) each
	for target in $$($(FUZZ) list --fuzz-dir tests/fuzz); do \
		$(FUZZ) run --fuzz-dir tests/fuzz "$$target" -- -max_total_time=$(FUZZ_SECONDS) \
			-len_control=0 -max_len=4096; \
	done

.PHONY: guest
guest: ## The Debian guest and QEMU that the tests boot (kept in the user's cache folder)
	@bash tests/guest/build.sh

.PHONY: guest-systemd
guest-systemd: guest ## The same guest with systemd as its first process
	@bash tests/guest/build.sh systemd

# Tools. Each installs only what is not there.

.PHONY: tools
tools: tools-build tools-rust tools-buf tools-pydpu tools-shellcheck tools-deny tools-package tools-tmux tools-valgrind ## Everything that the other targets would install

.PHONY: tools-build
tools-build:
	@command -v cargo >/dev/null || { echo "a Rust toolchain is needed: https://rustup.rs" >&2; exit 1; }
	@command -v cc >/dev/null || .ci/apt gcc libc6-dev

.PHONY: tools-rust
tools-rust:
	@cargo fmt --version >/dev/null 2>&1 || rustup component add rustfmt
	@cargo clippy --version >/dev/null 2>&1 || rustup component add clippy

.PHONY: tools-buf
tools-buf:
	@command -v npm >/dev/null || .ci/apt nodejs npm
	@command -v buf >/dev/null || npm install --loglevel=error --no-audit --no-fund --prefix $(TOOLS) @bufbuild/buf

# In an environment of its own, made anew when the list of versions changes.
.PHONY: tools-pydpu
tools-pydpu:
	@python3 -c 'import ensurepip, venv' 2>/dev/null || .ci/apt python3 python3-venv
	@cmp -s tests/tests/opi/pydpu.txt $(TOOLS)/pydpu/pydpu.txt || { \
		python3 -m venv --clear $(TOOLS)/pydpu && \
		$(TOOLS)/pydpu/bin/python -m pip install --quiet --disable-pip-version-check \
			--requirement tests/tests/opi/pydpu.txt && \
		cp tests/tests/opi/pydpu.txt $(TOOLS)/pydpu/; }

.PHONY: tools-shellcheck
tools-shellcheck:
	@command -v shellcheck >/dev/null || .ci/apt shellcheck

# A terminal for the test of `vireo top`.
.PHONY: tools-tmux
tools-tmux:
	@command -v tmux >/dev/null || .ci/apt tmux

.PHONY: tools-valgrind
tools-valgrind:
	@command -v valgrind >/dev/null || .ci/apt valgrind libc6-dbg

# Built without optimisation: it runs for a second, and its own build is what takes time.
.PHONY: tools-deny
tools-deny: tools-build
	@command -v cargo-deny >/dev/null || \
		CARGO_PROFILE_RELEASE_OPT_LEVEL=0 CARGO_PROFILE_RELEASE_LTO=off \
		CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
		cargo install --locked --quiet --root $(TOOLS) cargo-deny

# Built without optimisation, as cargo-deny is.
.PHONY: tools-package
tools-package: tools-build
	@command -v dpkg-shlibdeps >/dev/null || .ci/apt dpkg-dev binutils
	@command -v cargo-deb >/dev/null || \
		CARGO_PROFILE_RELEASE_OPT_LEVEL=0 CARGO_PROFILE_RELEASE_LTO=off \
		CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
		cargo install --locked --quiet --root $(TOOLS) cargo-deb

.PHONY: tools-fuzz
tools-fuzz:
	@command -v cargo-fuzz >/dev/null || cargo install --locked --quiet --root $(TOOLS) cargo-fuzz
	@command -v c++ >/dev/null || .ci/apt g++

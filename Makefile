# Everything a contributor needs; CI runs `make test`.

.PHONY: build demo test prepare lint unit integration story audit

build:
	TUNNELKEEPER_REVISION="$$(git describe --always --dirty 2>/dev/null)" cargo build --locked --release

# Half a minute that shows what it is for: nothing to install, nothing left behind.
demo:
	@cargo run --locked --quiet --example demo

# All of it, in the order in which it fails soonest.
test: prepare lint unit integration story

prepare:
	@tests/prepare

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

# Needs the advisory database, which is fetched; not part of the gate.
audit:
	cargo install --locked --quiet cargo-deny
	cargo deny check

.PHONY: perf

# Measures tradewind beside restic, borg and kopia, and writes BENCHMARKS.md: about three hours on a quiet machine,
# 45 GiB of disk in ~/.cache/tradewind/perf. `make perf PERF="--scale 1/64 --repeat 1"` tries it out in minutes.
PERF ?=
perf:
	tests/setup.sh packages peers
	cargo build --release -p tradewind-mover -p tradewind-perf
	cargo run --release -p tradewind-perf -- run $(PERF)

# The habits of the project: `make help` lists them. Builds go to one folder that all checkouts of a user share (see
# tests/with-builds.sh), so that a fresh clone does not build the dependencies again.
SHELL := /bin/bash
export CARGO_TARGET_DIR ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/tradewind/target
with-builds := tests/with-builds.sh

.DEFAULT_GOAL := help
.PHONY: help demo test check accept cluster-up cluster-down cluster-test bench perf fmt

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

demo: ## build, then back up and restore real data, and compare: the first thing to run
	$(with-builds) tests/demo.sh

test: ## everything that is tested every day, after installing what the tests need; at most 15 minutes once built
	$(with-builds) tests/everyday.sh

check: ## format, lints, dependencies, scripts, and the style of the tree
	$(with-builds) tests/check.sh

accept: ## the long tests in full size, as root; writes a report
	$(with-builds) tests/accept.sh

cluster-up: ## start a real Kubernetes on this machine (LEVEL=api: etcd and the API server alone)
	$(with-builds) tests/cluster/cluster.sh up $(LEVEL)

cluster-down: ## end it; nothing is left but its logs
	tests/cluster/cluster.sh down

cluster-test: ## install, build, start, test and end it; as root (TEST="velero" runs those with that name)
	$(with-builds) tests/cluster/cluster.sh test $(TEST)

bench: ## how fast each station is by itself (BENCH="seal" runs those with that name)
	$(with-builds) cargo bench --package tradewind-benches -- $(BENCH)

# About three hours on a quiet machine, 45 GiB of disk in ~/.cache/tradewind/perf.
# `make perf PERF="--scale 1/64 --repeat 1"` tries it out in minutes.
perf: ## measure beside restic, borg and kopia, and write BENCHMARKS.md; about three hours
	tests/setup.sh packages peers
	$(with-builds) sh -c 'cargo build --release --workspace --bin tradewind --bin perf && \
		exec "$$CARGO_TARGET_DIR/release/perf" run $(PERF)'

fmt: ## format the Rust sources
	cargo fmt --all

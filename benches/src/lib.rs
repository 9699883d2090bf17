//! Criterion benches of the pipeline's stations, each by itself: `cpu` and `io`, beside this folder. `cargo bench`.

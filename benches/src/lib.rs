//! Criterion benches of each station of the pipeline, one file a station beside this folder: `cargo bench`.

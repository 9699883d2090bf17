//! `perf`: measures tradewind side by side with other backup tools on the same data, and writes BENCHMARKS.md.
//!
//! Way of a figure: `data` (with `pages`, `tree`, `image`) makes what is backed up, `tools` knows the commands,
//! `rounds` lets the tools take turns, `measure` runs one command, `compare` checks what came back, `record` keeps
//! the raw results, `report` turns them into tables. It drives programs and links no part of tradewind.

#![allow(clippy::print_stdout, reason = "a command line program that reports to its terminal")]
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test that fails may panic"))]

mod compare;
mod data;
mod figures;
mod image;
mod measure;
mod pages;
mod record;
mod report;
mod rounds;
mod tools;
mod tree;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};

use crate::data::{Scale, Set, Source};
use crate::record::Results;
use crate::rounds::Plan;
use crate::tools::{Tools, Variant};

/// Measures tradewind beside other backup tools
#[derive(Parser)]
#[command(name = "perf", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make the data sets
    Gen {
        #[command(flatten)]
        what: What,
    },
    /// Measure; makes the data sets that are missing
    Run {
        #[command(flatten)]
        what: What,
        /// The tools, with `-best` for their best settings: tradewind,restic,restic-best,borg,borg-best,kopia,...
        #[arg(long, value_delimiter = ',', default_values_t = Variant::all())]
        tools: Vec<Variant>,
        /// Rounds of each tool; medians are reported
        #[arg(long, default_value_t = 3)]
        repeat: u32,
        /// Keep the results that are in the raw file and measure what is missing
        #[arg(long)]
        resume: bool,
        /// Seconds to wait for a quiet machine before each command
        #[arg(long, default_value_t = 60)]
        settle: u64,
        /// The tradewind to measure, instead of the one beside this program or on PATH
        #[arg(long)]
        tradewind: Option<PathBuf>,
        /// The raw results, JSON lines
        #[arg(long, default_value = "perf/results.jsonl")]
        raw: PathBuf,
    },
    /// Write the report from the raw results
    Report {
        /// The raw results, JSON lines
        #[arg(long, default_value = "perf/results.jsonl")]
        raw: PathBuf,
        /// The report
        #[arg(long, default_value = "BENCHMARKS.md")]
        output: PathBuf,
    },
}

#[derive(Args)]
struct What {
    /// Where data, repositories and restored files go; 60 GiB at full scale [default: ~/.cache/tradewind/perf]
    #[arg(long, env = "TRADEWIND_PERF_DIR")]
    dir: Option<PathBuf>,
    /// A share of the full sizes, such as 1/16
    #[arg(long, default_value = "1")]
    scale: Scale,
    /// The data sets
    #[arg(long, value_delimiter = ',', default_values_t = Set::ALL)]
    only: Vec<Set>,
}

impl What {
    fn dir(&self) -> Result<PathBuf> {
        let default = || {
            let cache = std::env::var_os("XDG_CACHE_HOME").filter(|c| !c.is_empty()).map(PathBuf::from);
            let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))?;
            Some(cache.join("tradewind/perf"))
        };
        let dir = self.dir.clone().or_else(default).context("no HOME: give --dir")?;
        std::path::absolute(dir).context("--dir")
    }
}

fn run(cli: Cli) -> Result<bool> {
    match cli.command {
        Command::Gen { what } => {
            for set in &what.only {
                let source = Source::new(&what.dir()?, *set, what.scale);
                source.prepare()?;
                let extent = source.extent()?;
                println!(
                    "{set}: {} MiB, {} MiB allocated, {} files, {}",
                    extent.logical >> 20,
                    extent.allocated >> 20,
                    extent.files,
                    source.entry().display()
                );
            }
            Ok(true)
        }
        Command::Run { what, tools: variants, repeat, resume, settle, tradewind, raw } => {
            let tools = Tools::find(tradewind.as_deref());
            let plan = Plan {
                dir: what.dir()?,
                scale: what.scale,
                sets: what.only,
                variants,
                repeat,
                raw,
                resume,
                patience: Duration::from_secs(settle),
            };
            let failed = rounds::run(&plan, &tools)?;
            println!("raw results: {}", plan.raw.display());
            if failed > 0 {
                eprintln!("!!! {failed} rounds FAILED and have no figures");
            }
            Ok(failed == 0)
        }
        Command::Report { raw, output } => {
            let results = Results::read(&raw)?;
            std::fs::write(&output, report::render(&results)?)?;
            println!("{}", output.display());
            Ok(true)
        }
    }
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(3),
        Err(error) => {
            eprintln!("perf: {error:#}");
            ExitCode::FAILURE
        }
    }
}

//! `perf`: measures tradewind side by side with other backup tools on the same data, and writes BENCHMARKS.md.
//!
//! Way of a figure: `data` (with `pages`, `tree`, `image`) makes what is backed up, `tools` knows the commands,
//! `rounds` lets the tools take turns, `measure` runs one command, `compare` checks what came back, `record` keeps
//! the raw results, `report` turns them into tables. It drives programs and links no part of tradewind.

#![allow(clippy::print_stdout, reason = "a command line program that reports to its terminal")]

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

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
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
    /// Measure, and write the report; makes the data sets that are missing
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
        #[arg(long, default_value_t = 20)]
        settle: u64,
        /// Neither sync nor empty the page cache before each command: for trying out, not for figures
        #[arg(long)]
        warm: bool,
        /// The tradewind to measure, instead of the one beside this program or on PATH
        #[arg(long)]
        tradewind: Option<PathBuf>,
        /// The raw results, JSON lines [default: perf/results.jsonl at full scale, DIR/results.jsonl otherwise]
        #[arg(long)]
        raw: Option<PathBuf>,
        /// The report [default: BENCHMARKS.md at full scale, DIR/BENCHMARKS.md otherwise]
        #[arg(long)]
        output: Option<PathBuf>,
    },
    /// Write the report again from the raw results
    Report {
        /// The raw results, JSON lines
        #[arg(long, default_value = RAW)]
        raw: PathBuf,
        /// The report
        #[arg(long, default_value = REPORT)]
        output: PathBuf,
    },
}

/// The raw results of a full measurement, kept in the project beside the report.
const RAW: &str = "perf/results.jsonl";
/// The report of a full measurement.
const REPORT: &str = "BENCHMARKS.md";

#[derive(Args)]
struct What {
    /// Where data, repositories and restored files go; 45 GiB at full scale [default: ~/.cache/tradewind/perf]
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

fn write_report(raw: &Path, output: &Path) -> Result<()> {
    let results = Results::read(raw)?;
    if results.runs.is_empty() {
        bail!("{} holds no results", raw.display());
    }
    std::fs::write(output, report::render(&results)?)
        .with_context(|| format!("writing {}", output.display()))?;
    println!("raw results: {}\nreport: {}", raw.display(), output.display());
    Ok(())
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
        Command::Run { what, tools: variants, repeat, resume, settle, warm, tradewind, raw, output } => {
            let dir = what.dir()?;
            let whole = what.scale.is_whole();
            let place = |name: &str, below: &str| if whole { name.into() } else { dir.join(below) };
            let raw = raw.unwrap_or_else(|| place(RAW, "results.jsonl"));
            let output = output.unwrap_or_else(|| place(REPORT, "BENCHMARKS.md"));
            let tools = Tools::find(tradewind.as_deref());
            let plan = Plan {
                dir,
                scale: what.scale,
                sets: what.only,
                variants,
                repeat,
                raw,
                resume,
                patience: Duration::from_secs(settle),
                cold: !warm,
            };
            let failed = rounds::run(&plan, &tools)?;
            write_report(&plan.raw, &output)?;
            if failed > 0 {
                eprintln!("!!! {failed} rounds FAILED and have no figures");
            }
            Ok(failed == 0)
        }
        Command::Report { raw, output } => {
            write_report(&raw, &output)?;
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

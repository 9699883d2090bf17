//! `cluster`: starts, enters and ends the Kubernetes of the tests; see `tests/cluster/README.md`.

use std::ffi::OsString;
use std::io::Write as _;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use tradewind_cluster::folder::{Folder, Level};
use tradewind_cluster::{bed, cluster, inside, left, objects};

/// A real Kubernetes for tests, on this machine.
#[derive(Parser)]
struct Options {
    #[command(subcommand)]
    command: Commands,
    /// How much of a cluster
    #[arg(long, global = true, default_value = "node")]
    level: Level,
}

#[derive(Subcommand)]
enum Commands {
    /// Start a cluster, after cleaning up what a killed one left
    Up {
        /// Folders with its programs, as in PATH (tests/cluster/setup.sh prints them)
        #[arg(long)]
        programs: String,
    },
    /// End the cluster; nothing is left but its logs
    Down,
    /// Run a command inside
    In {
        /// The command and its arguments
        #[arg(trailing_var_arg = true, required = true, allow_hyphen_values = true)]
        command: Vec<OsString>,
    },
    /// Wait until tests have left nothing inside: pods, volumes, snapshots, loop devices, mounts (to be run inside)
    Left,
    /// The first process of the namespaces
    #[command(hide = true)]
    First,
    /// The process that starts the components
    #[command(hide = true)]
    Supervise,
}

fn main() -> ExitCode {
    match run(Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            let _ = writeln!(std::io::stderr(), "cluster: error: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: Options) -> Result<()> {
    let folder = Folder::of(options.level)?;
    let level = options.level.name();
    match options.command {
        Commands::Up { programs } => {
            let took = bed::up(&folder, &programs)?;
            writeln!(std::io::stderr(), "cluster: up ({level}) after {:.1} s", took.as_secs_f64())?;
        }
        Commands::Down => {
            let said = if bed::down(&folder)? { "down" } else { "was not up" };
            writeln!(std::io::stderr(), "cluster: {said} ({level})")?;
        }
        Commands::In { command } => match bed::enter(&folder, &command)? {},
        Commands::Left => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let client = objects::client(&folder).await?;
                left::nothing(&folder, &client, cluster::LIMIT).await
            })?;
        }
        Commands::First => inside::first(&folder)?,
        Commands::Supervise => inside::supervise(&folder)?,
    }
    Ok(())
}

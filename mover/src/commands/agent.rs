//! `tradewind agent`, and `tradewind hold` in the pods that it makes

use tokio::signal::unix::{SignalKind, signal};
use tradewind_agent::{Mode, Options, holder};
use tradewind_pipeline::limits::{self, Rate};
use tradewind_pipeline::{Error, Result};

use super::done;
use crate::args::{AgentArgs, AgentMode, Global, HoldArgs};
use crate::exit::Outcome;
use crate::limits::Limits;

pub(super) fn run(global: &Global, args: &AgentArgs) -> Result<Outcome> {
    let machine = Limits::small();
    let options = Options {
        mode: match args.mode {
            AgentMode::VeleroMover => Mode::VeleroMover,
            AgentMode::Standalone => Mode::Standalone,
        },
        node: args.node.clone(),
        namespace: args.namespace.clone(),
        pod: args.pod.clone(),
        config: args.config.clone(),
        node_agent_config: args.node_agent_config.clone(),
        credentials_secret: args.credentials_secret.clone(),
        key_secret: args.key_secret.clone(),
        socket_directory: args.socket_directory.clone(),
        socket_host_path: args.socket_host_path.clone(),
        listen: args.listen,
        prepare_timeout: args.prepare_timeout,
        forget_interval: args.forget_interval,
        forget_grace: args.forget_grace,
        cache_dir: global.cache_dir.clone().unwrap_or_else(|| std::env::temp_dir().join("tradewind")),
        limits: limits::Limits {
            memory: machine.memory,
            workers: machine.workers,
            read_rate: Rate::unlimited(),
            upload_rate: Rate::unlimited(),
        },
    };
    let failed = |what: &str, e: std::io::Error| Error::Internal(format!("{what}: {e}"));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(machine.workers.clamp(2, 8))
        .enable_all()
        .build()
        .map_err(|e| failed("cannot start threads", e))?;
    let ended = runtime.block_on(async {
        let mut terminate =
            signal(SignalKind::terminate()).map_err(|e| failed("cannot listen for signals", e))?;
        let mut interrupt =
            signal(SignalKind::interrupt()).map_err(|e| failed("cannot listen for signals", e))?;
        let end = async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        Box::pin(tradewind_agent::run(options, end)).await.map_err(|error| match error {
            tradewind_agent::Error::Refused(why) => Error::Usage(why),
            other => Error::Internal(other.to_string()),
        })
    });
    // Runs are stopped in the middle: what they have uploaded is found by the next one.
    runtime.shutdown_background();
    ended.map(done)
}

pub(super) fn hold(args: &HoldArgs) -> Result<Outcome> {
    let options = holder::Options {
        volume: args.volume.clone(),
        write: args.write,
        job: args.job.clone(),
        token_file: args.token_file.clone(),
        socket_directory: args.socket_directory.clone(),
    };
    holder::run(&options).map_err(|e| Error::Usage(e.to_string())).map(done)
}

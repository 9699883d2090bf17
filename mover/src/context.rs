//! What a command on a repository has at hand: settings, limits, progress, output, and a runtime for the store.
//!
//! The main thread is a plain one: the library's runs block it, and their requests are served by the runtime's own
//! threads. The first interrupt asks the run to stop cleanly; the second ends the process.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::{Handle, Runtime};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tradewind_pipeline::progress::Progress;
use tradewind_pipeline::seal::Secret;
use tradewind_pipeline::{Error, Result};

use crate::args::Global;
use crate::exit::Code;
use crate::limits::Limits;
use crate::output::{Output, Screen};
use crate::progress::Watch;
use crate::secret::Ask;
use crate::settings::{KEY_FLAGS, Settings};

/// How long requests that nobody waits for may take to end.
const FAREWELL: Duration = Duration::from_secs(2);

/// Everything around one command.
pub(crate) struct Context {
    /// Repository, key, S3 details, caches.
    pub(crate) settings: Settings,
    /// Memory, workers, rates.
    pub(crate) limits: Limits,
    /// Where results go.
    pub(crate) output: Arc<Output>,
    /// Counters and the cancel flag.
    pub(crate) progress: Arc<Progress>,
    runtime: Option<Runtime>,
    handle: Handle,
    stopping: watch::Receiver<bool>,
}

impl Context {
    /// Settles the settings, starts the runtime and listens for signals.
    pub(crate) fn new(global: &Global, limits: Limits, output: &Arc<Output>) -> Result<Self> {
        let settings = Settings::new(global)?;
        let failed = |what: &str, e: std::io::Error| Error::Internal(format!("{what}: {e}"));
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(limits.workers.div_ceil(2).clamp(1, 8))
            .thread_name("store")
            .enable_all()
            .build()
            .map_err(|e| failed("cannot start threads", e))?;
        let handle = runtime.handle().clone();
        let progress = Arc::new(Progress::default());
        let sink = Arc::clone(output);
        progress.on_skip(move |item| sink.skipped(item));
        let sink = Arc::clone(output);
        progress.on_warning(move |text| sink.warn(text));
        let (stop, stopping) = watch::channel(false);
        listen(&handle, stop, Arc::clone(&progress), output.screen().clone())
            .map_err(|e| failed("cannot listen for signals", e))?;
        let output = Arc::clone(output);
        Ok(Self { settings, limits, output, progress, runtime: Some(runtime), handle, stopping })
    }

    /// Runs `work` to its end, or until somebody asks to stop.
    pub(crate) fn wait<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let mut stopping = self.stopping.clone();
        self.handle.block_on(async {
            tokio::select! {
                biased;
                done = Box::pin(work) => done,
                // The sender lives as long as the runtime.
                _ = stopping.wait_for(|stop| *stop) => Err(Error::Cancelled),
            }
        })
    }

    /// Runs `work` on this thread while its progress is shown.
    pub(crate) fn watched<T>(&self, command: &'static str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let _watch = Watch::start(command, &self.progress, &self.output);
        work()
    }

    /// For the library's own requests.
    pub(crate) fn handle(&self) -> &Handle {
        &self.handle
    }

    /// The key of the repository.
    pub(crate) fn secret(&self, ask: Ask) -> Result<Secret> {
        self.settings.key.read(ask, KEY_FLAGS, &self.output)
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(FAREWELL);
        }
    }
}

fn listen(
    handle: &Handle,
    stop: watch::Sender<bool>,
    progress: Arc<Progress>,
    screen: Screen,
) -> std::io::Result<()> {
    let _entered = handle.enter();
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    handle.spawn(async move {
        for first in [true, false] {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if !first {
                std::process::exit(Code::Interrupted as i32);
            }
            progress.cancel();
            stop.send_replace(true);
            screen.line("tradewind: stopping; once more stops at once");
        }
    });
    Ok(())
}

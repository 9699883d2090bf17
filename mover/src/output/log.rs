//! Remarks of the library and of what it stands on, for people who look for a cause. On standard error, never JSON.

use std::io::{self, Write};

use tracing_subscriber::EnvFilter;

use super::Screen;

/// Variable with a filter in the syntax of `tracing_subscriber::EnvFilter`, such as `tradewind=debug`.
const VARIABLE: &str = "TRADEWIND_LOG";

/// Starts to write remarks, more of them when `verbose`.
pub(crate) fn start(verbose: u8, screen: &Screen) {
    let default = match verbose {
        0 => "error,tradewind=warn",
        1 => "warn,tradewind=info",
        2 => "info,tradewind=debug",
        _ => "debug,tradewind=trace",
    };
    let filter = match std::env::var(VARIABLE).map(EnvFilter::try_new) {
        Ok(Ok(filter)) => filter,
        Ok(Err(wrong)) => {
            screen.line(format_args!("tradewind: warning: {VARIABLE} is not used: {wrong}"));
            EnvFilter::new(default)
        }
        Err(_) => EnvFilter::new(default),
    };
    let screen = screen.clone();
    // A second start, as in tests, changes nothing.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(move || Lines(screen.clone()))
        .with_ansi(false)
        .with_target(verbose > 1)
        .try_init();
}

/// Writes above the progress display.
struct Lines(Screen);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.bars().suspend(|| io::stderr().lock().write_all(bytes))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

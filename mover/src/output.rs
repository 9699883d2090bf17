//! Everything this program writes: results on standard output, remarks on standard error.
//!
//! A result is a [`Message`]: it has one form for people (`Display`) and one for programs, a JSON line whose fields
//! are documented in `JSON.md` and frozen by tests. Where standard output carries raw data, results move to standard
//! error.

pub(crate) mod human;
pub(crate) mod listing;
pub(crate) mod log;
pub(crate) mod messages;
#[cfg(test)]
mod schema_tests;
pub(crate) mod summaries;

use std::fmt::Display;
use std::io::{self, BufWriter, IsTerminal as _, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use indicatif::MultiProgress;
use serde::Serialize;
use tradewind_pipeline::progress::Skipped;
use tradewind_pipeline::{Error, Result};

use crate::args::Cli;
use crate::exit::{self, Code, Outcome};
use messages::{Damage, Failure, Skip, Warning};

/// Version of the JSON schema. Adding a field does not change it; changing or removing one does.
pub(crate) const SCHEMA_VERSION: u32 = 1;

/// Skipped items that a terminal shows before it only counts; a file, `--verbose` and `--json` get them all.
const SKIPS_SHOWN: u64 = 50;

/// Something a program or a person reads. For people it ends without a newline.
pub(crate) trait Message: Serialize + Display {
    /// `message_type` in JSON.
    const TYPE: &'static str;
}

#[derive(Serialize)]
struct Line<'a, M> {
    message_type: &'static str,
    schema_version: u32,
    #[serde(flatten)]
    message: &'a M,
}

/// Where results and remarks go. One for the whole process, shared by its threads.
pub(crate) struct Output {
    json: bool,
    quiet: bool,
    verbose: u8,
    stream: Mutex<BufWriter<Box<dyn Write + Send>>>,
    reader_gone: AtomicBool,
    skips: AtomicU64,
    screen: Screen,
}

/// Standard error, shared with the progress display so that neither overwrites the other.
#[derive(Clone, Debug)]
pub(crate) struct Screen {
    bars: MultiProgress,
    mute: bool,
}

impl Screen {
    /// Writes one line, and the progress display again below it.
    pub(crate) fn line(&self, text: impl Display) {
        if !self.mute {
            // Without standard error there is nobody to tell.
            self.bars.suspend(|| drop(writeln!(io::stderr().lock(), "{text}")));
        }
    }

    /// Where bars are drawn.
    pub(crate) fn bars(&self) -> &MultiProgress {
        &self.bars
    }
}

impl Output {
    /// As the command line asks. `raw`: standard output carries data, so results go to standard error.
    pub(crate) fn new(cli: &Cli) -> Self {
        Self::to(cli.global.json, cli.global.quiet, cli.global.verbose, cli.command.writes_data())
    }

    fn to(json: bool, quiet: bool, verbose: u8, raw: bool) -> Self {
        let stream: Box<dyn Write + Send> = if raw { Box::new(io::stderr()) } else { Box::new(io::stdout()) };
        // Where standard error carries JSON, it carries nothing else.
        Self::with(json, quiet, verbose, stream, raw && json)
    }

    fn with(json: bool, quiet: bool, verbose: u8, stream: Box<dyn Write + Send>, mute: bool) -> Self {
        Self {
            json,
            quiet,
            verbose,
            stream: Mutex::new(BufWriter::new(stream)),
            reader_gone: AtomicBool::new(false),
            skips: AtomicU64::new(0),
            screen: Screen { bars: MultiProgress::new(), mute },
        }
    }

    /// Writes nowhere.
    #[cfg(test)]
    pub(crate) fn silent() -> Self {
        Self::with(false, true, 0, Box::new(io::sink()), true)
    }

    /// True when results are JSON lines.
    pub(crate) fn json(&self) -> bool {
        self.json
    }

    /// True when only results, warnings and errors are wanted.
    pub(crate) fn quiet(&self) -> bool {
        self.quiet
    }

    /// How much more is wanted.
    pub(crate) fn verbose(&self) -> u8 {
        self.verbose
    }

    /// Standard error.
    pub(crate) fn screen(&self) -> &Screen {
        &self.screen
    }

    /// True when a display on standard error makes sense.
    pub(crate) fn wants_display(&self) -> bool {
        !self.json && !self.quiet && io::stderr().is_terminal()
    }

    /// Writes one item of a list. Lists may be long, so this is buffered.
    ///
    /// # Errors
    /// [`Error::Cancelled`] when the reader went away (see [`Output::finish`]), [`Error::Target`] when it cannot be
    /// written otherwise.
    pub(crate) fn item<M: Message>(&self, message: &M) -> Result<()> {
        self.write(message, false)
    }

    /// Writes the result that was asked for.
    ///
    /// # Errors
    /// As [`Output::item`].
    pub(crate) fn result<M: Message>(&self, message: &M) -> Result<()> {
        self.write(message, true)
    }

    /// Writes what a run did. The work is done: a reader that went away changes nothing about it.
    ///
    /// # Errors
    /// [`Error::Target`] when it cannot be written.
    pub(crate) fn report<M: Message>(&self, message: &M) -> Result<()> {
        if self.quiet && !self.json {
            return Ok(());
        }
        match self.put(message, true) {
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            other => other.map_err(unwritten),
        }
    }

    /// Writes a line about a run that goes on, in JSON only; it does not matter who reads it.
    pub(crate) fn aside<M: Message>(&self, message: &M) {
        if self.json {
            let _ = self.put(message, true);
        }
    }

    /// A remark that deserves attention and is no error.
    pub(crate) fn warn(&self, text: &str) {
        let warning = Warning { message: text.to_owned() };
        self.screen.line(&warning);
        self.aside(&warning);
    }

    /// An item that is not in the snapshot or not restored, or not fully.
    pub(crate) fn skipped(&self, item: &Skipped) {
        let skip = Skip::from(item);
        self.aside(&skip);
        if self.json {
            return;
        }
        let before = self.skips.fetch_add(1, Relaxed);
        if self.verbose > 0 || before < SKIPS_SHOWN || !io::stderr().is_terminal() {
            self.screen.line(&skip);
        } else if before == SKIPS_SHOWN {
            self.screen.line("tradewind: more is skipped; --verbose names everything");
        }
    }

    /// Damage that a run found and went on.
    pub(crate) fn damages(&self, damages: impl IntoIterator<Item = Damage>) {
        for damage in damages {
            self.screen.line(&damage);
            self.aside(&damage);
        }
    }

    /// Writes the last words and gives the exit status. `resumes`: an interrupted run goes on where it was.
    pub(crate) fn finish(&self, result: Result<Outcome>, resumes: bool) -> ExitCode {
        let flushed = self.stream.lock().map_or(Ok(()), |mut stream| stream.flush());
        let result = result.and_then(|outcome| flushed.map(|()| outcome).map_err(|e| self.ended(e)));
        match result {
            Ok(outcome) => outcome.code().into(),
            // Whoever read our list has seen enough, as in `tradewind ls latest | head`.
            Err(Error::Cancelled) if self.reader_gone.load(Relaxed) => Code::Done.into(),
            Err(error) => {
                let mut failure = Failure::from(&error);
                if matches!(error, Error::Cancelled) && !resumes {
                    failure.hint = None;
                }
                self.screen.line(&failure);
                self.aside(&failure);
                Code::of(error.kind()).into()
            }
        }
    }

    fn write<M: Message>(&self, message: &M, flush: bool) -> Result<()> {
        self.put(message, flush).map_err(|e| self.ended(e))
    }

    /// A reader that has seen enough of a list ends the command, and that is no failure.
    fn ended(&self, error: io::Error) -> Error {
        if error.kind() == io::ErrorKind::BrokenPipe {
            self.reader_gone.store(true, Relaxed);
            return Error::Cancelled;
        }
        unwritten(error)
    }

    fn put<M: Message>(&self, message: &M, flush: bool) -> io::Result<()> {
        let mut stream =
            self.stream.lock().map_err(|_| io::Error::other("a thread failed while it wrote"))?;
        self.write_to(&mut *stream, message, flush)
    }

    fn write_to<M: Message>(&self, stream: &mut dyn Write, message: &M, flush: bool) -> io::Result<()> {
        if self.json {
            let line = Line { message_type: M::TYPE, schema_version: SCHEMA_VERSION, message };
            serde_json::to_writer(&mut *stream, &line)?;
            stream.write_all(b"\n")?;
        } else {
            writeln!(stream, "{message}")?;
        }
        if flush { stream.flush() } else { Ok(()) }
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if let Ok(mut stream) = self.stream.lock() {
            let _ = stream.flush();
        }
    }
}

fn unwritten(error: io::Error) -> Error {
    Error::target_io(Path::new("standard output"), "cannot write the result", error)
}

/// Reports a command line that could not be parsed. `raw`: standard output is for data.
pub(crate) fn usage_error(json: bool, raw: bool, message: &str, hint: &str) -> ExitCode {
    let output = Output::to(json, false, 0, raw);
    let failure = Failure {
        code: Code::Usage as u8,
        kind: exit::kind_name(tradewind_pipeline::Kind::Usage),
        message: message.to_owned(),
        hint: Some(hint.to_owned()),
    };
    output.screen.line(&failure);
    output.aside(&failure);
    Code::Usage.into()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed test may panic")]

    use std::sync::Arc;

    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>, Option<io::ErrorKind>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            match self.1 {
                Some(kind) => Err(kind.into()),
                None => self.0.lock().unwrap().write(bytes),
            }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn output(json: bool, quiet: bool, fails: Option<io::ErrorKind>) -> (Output, Sink) {
        let sink = Sink(Arc::default(), fails);
        (Output::with(json, quiet, 0, Box::new(sink.clone()), true), sink)
    }

    fn text(sink: &Sink) -> String {
        String::from_utf8(sink.0.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn a_json_error_is_one_line() {
        let (output, sink) = output(true, false, None);
        let error = Error::WrongKey { location: "/r".to_owned(), secret: "passphrase" };
        let code = output.finish(Err(error), true);
        assert_eq!(format!("{code:?}"), format!("{:?}", ExitCode::from(4)));
        assert_eq!(
            text(&sink),
            "{\"message_type\":\"error\",\"schema_version\":1,\"code\":4,\"kind\":\"wrong_key\",\
             \"message\":\"/r: no key slot opens with this passphrase\",\
             \"hint\":\"check --password-file or --key-file\"}\n"
        );
    }

    #[test]
    fn asides_are_for_programs_only() {
        let (output, sink) = output(false, false, None);
        output.warn("careful");
        output.skipped(&Skipped { path: b"a".to_vec(), reason: "vanished".to_owned() });
        assert_eq!(text(&sink), "");
    }

    #[test]
    fn a_reader_that_left_ends_a_list_and_not_a_run() {
        let (output, _) = output(true, false, Some(io::ErrorKind::BrokenPipe));
        let warning = Warning { message: "x".to_owned() };
        assert!(output.report(&warning).is_ok());
        let ended = output.result(&warning);
        assert!(matches!(ended, Err(Error::Cancelled)));
        let code = output.finish(ended.map(|()| Outcome::Done), true);
        assert_eq!(format!("{code:?}"), format!("{:?}", ExitCode::from(0)));
    }

    #[test]
    fn an_interrupted_run_is_not_done_because_nobody_reads_its_progress() {
        let (output, _) = output(true, false, Some(io::ErrorKind::BrokenPipe));
        output.aside(&Warning { message: "x".to_owned() });
        output.warn("y");
        output.skipped(&Skipped { path: b"a".to_vec(), reason: "vanished".to_owned() });
        let code = output.finish(Err(Error::Cancelled), true);
        assert_eq!(format!("{code:?}"), format!("{:?}", ExitCode::from(130)));
    }

    #[test]
    fn a_full_disk_is_an_error() {
        let (output, _) = output(true, false, Some(io::ErrorKind::StorageFull));
        let warning = Warning { message: "x".to_owned() };
        assert!(matches!(output.report(&warning), Err(Error::Target { .. })));
    }

    #[test]
    fn quiet_leaves_results_alone() {
        let (output, sink) = output(false, true, None);
        let warning = Warning { message: "x".to_owned() };
        output.report(&warning).unwrap();
        assert_eq!(text(&sink), "");
        output.result(&warning).unwrap();
        assert_eq!(text(&sink), "tradewind: warning: x\n");
    }
}

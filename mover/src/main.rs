//! `tradewind`: the command line around the data plane.
//!
//! A command goes through the same steps each time: what was typed ([`args`]) becomes values ([`settings`],
//! [`limits`]), the values become runs of the library ([`job`], and only there), what comes back is written as
//! messages ([`output`]), and the outcome or error becomes the exit status ([`exit`]).

mod args;
mod commands;
mod context;
mod exit;
mod harden;
mod job;
mod limits;
mod output;
mod progress;
mod secret;
mod settings;

fn main() -> std::process::ExitCode {
    harden::apply();
    limits::apply();
    tradewind_pipeline::heap::bound();
    match args::parse(std::env::args_os()) {
        Ok(cli) => commands::run(&cli),
        Err(stopped) => stopped.show(),
    }
}

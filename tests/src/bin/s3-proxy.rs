//! `s3-proxy`: the recording and fault-injecting proxy of the tests as a program; see `tradewind_tests::proxy`.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Parser;
use tradewind_tests::proxy::{Config, Credentials, Proxy, Rule};

/// A reverse proxy in front of an S3 server that records requests and injects faults.
///
/// Prints `S3_PROXY_ENDPOINT=...` when it accepts connections and runs until SIGINT or SIGTERM.
#[derive(Parser)]
#[command(name = "s3-proxy", after_help = FAULTS)]
struct Options {
    /// The server, http://HOST:PORT or https://HOST:PORT
    #[arg(long)]
    upstream: String,
    /// CA of the server's certificate
    #[arg(long)]
    upstream_ca: Option<PathBuf>,
    /// Where to listen; port 0 takes a free one
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Certificate for TLS towards the clients
    #[arg(long, requires = "key")]
    cert: Option<PathBuf>,
    /// Key of the certificate
    #[arg(long, requires = "cert")]
    key: Option<PathBuf>,
    /// Take If-None-Match and If-Match from PUT and POST. Where they are signed the request is signed again, with
    /// `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY` of the environment
    #[arg(long)]
    drop_conditional: bool,
    /// METHOD,KEY,WHEN,ACTION[,ACTION...]; may be repeated
    #[arg(long = "fault", value_name = "RULE")]
    faults: Vec<String>,
    /// For rules with a probability
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Append one JSON line per request to this file
    #[arg(long)]
    log: Option<PathBuf>,
    /// End when standard input ends: for a program that holds the other end of a pipe
    #[arg(long)]
    until_stdin_ends: bool,
}

const FAULTS: &str = "Rules, for instance:
  --fault 'PUT,packs/,3,status=503,retry-after=1'   the third PUT below packs/ is refused
  --fault 'UploadPart,packs/,/5,reset=after'        every fifth part: read, not forwarded, connection reset
  --fault 'PutObject,snapshots/,1,drop'             applied by the server, but the client never hears of it
  --fault 'GET,packs/,p0.01,flip=4096'              one in a hundred answers has a flipped bit
  --fault '*,*,*,delay=20,rate=1000000'             slow for all, 1 MB/s together
METHOD: an HTTP method or an S3 operation, several with |, or *. KEY: the beginning of the key or of a part of it after
a /, with a leading / of the whole key only; * for any bytes. WHEN: * 3 3+ 3-5 /4 p0.1. ACTION: status=N retry-after=S
reset=before reset=after cut=BYTES drop truncate=BYTES flip=BYTE delay=MS rate=BYTES-PER-SECOND.";

fn main() -> Result<()> {
    let options = Options::parse();
    let credentials =
        std::env::var("AWS_ACCESS_KEY_ID").ok().zip(std::env::var("AWS_SECRET_ACCESS_KEY").ok());
    let proxy = Proxy::start(Config {
        listen: options.listen,
        tls: options.cert.zip(options.key),
        upstream_ca: options.upstream_ca,
        drop_conditional: options.drop_conditional,
        credentials: credentials.map(|(access_key, secret_key)| Credentials { access_key, secret_key }),
        faults: options.faults.iter().map(|rule| rule.parse()).collect::<Result<Vec<Rule>>>()?,
        seed: options.seed,
        log: options.log,
        keep_records: false,
        ..Config::new(&options.upstream)
    })?;
    writeln!(std::io::stdout(), "S3_PROXY_ENDPOINT={}", proxy.endpoint())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(ended(options.until_stdin_ends))?;
    runtime.shutdown_background(); // it may still be reading standard input
    Ok(())
}

async fn ended(with_stdin: bool) -> Result<()> {
    let mut terminated = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    let stdin_ended = async {
        if with_stdin {
            tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new())).await.map(drop)
        } else {
            std::future::pending().await
        }
    };
    tokio::select! {
        done = tokio::signal::ctrl_c() => done.context("waiting for a signal"),
        _ = terminated.recv() => Ok(()),
        done = stdin_ended => done.context("reading standard input"),
    }
}

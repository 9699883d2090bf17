//! A reverse proxy in front of a real S3 server. It streams bodies through in both directions, keeps the Host header
//! (signatures stay valid), writes one record per request, takes conditional headers away if asked, and injects
//! faults by rule.
//!
//! ```no_run
//! use tradewind_tests::proxy::{Config, Proxy};
//! # fn main() -> anyhow::Result<()> {
//! let mut config = Config::new("http://127.0.0.1:9000");
//! config.faults = vec!["UploadPart,packs/,/3,status=503,retry-after=1".parse()?];
//! let proxy = Proxy::start(config)?;
//! // ... a client works against proxy.endpoint() ...
//! assert!(proxy.records().iter().all(|r| r.header("x-amz-content-sha256") == Some("UNSIGNED-PAYLOAD")));
//! # Ok(())
//! # }
//! ```
//!
//! A record is written before the client sees the first byte of its answer: what a client knows is in the records.

mod body;
mod fault;
mod record;
mod sign;
mod wire;

use std::fs::File;
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;

use body::{BodyError, Treated, Treatment};
use fault::Plan;
pub use fault::Rule;
pub use record::Record;
pub use sign::Credentials;
use wire::{Lane, Upstream, Wire};

/// Headers of one connection, not of the request.
const HOP_BY_HOP: &[&str] =
    &["connection", "keep-alive", "proxy-connection", "te", "transfer-encoding", "upgrade"];
const CONDITIONAL: &[&str] = &["if-none-match", "if-match"];

/// What a proxy does.
#[derive(Debug)]
pub struct Config {
    /// Where it listens; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Certificate and key (PEM files) for TLS towards the clients.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// The server: `http://host:port` or `https://host:port`.
    pub upstream: String,
    /// The CA of the server's certificate.
    pub upstream_ca: Option<PathBuf>,
    /// Takes If-None-Match and If-Match from PUT and POST, as servers do that do not know them.
    pub drop_conditional: bool,
    /// Needed by `drop_conditional` for clients that sign those headers.
    pub credentials: Option<Credentials>,
    /// The rules, in the order of their application.
    pub faults: Vec<Rule>,
    /// For rules with a probability.
    pub seed: u64,
    /// Appends one JSON line per request.
    pub log: Option<PathBuf>,
    /// Keeps the records for [`Proxy::records`].
    pub keep_records: bool,
}

impl Config {
    /// A plain proxy on a free port of 127.0.0.1 that keeps its records.
    #[must_use]
    pub fn new(upstream: &str) -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            tls: None,
            upstream: upstream.to_owned(),
            upstream_ca: None,
            drop_conditional: false,
            credentials: None,
            faults: Vec::new(),
            seed: 1,
            log: None,
            keep_records: true,
        }
    }
}

/// A running proxy. It stops when this is dropped.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    scheme: &'static str,
    shared: Arc<Shared>,
    runtime: Option<Runtime>,
}

impl Proxy {
    /// Starts a proxy on threads of its own; it accepts connections when this returns.
    pub fn start(config: Config) -> Result<Self> {
        let upstream = Upstream::new(&config.upstream, config.upstream_ca.as_deref())?;
        let tls =
            config.tls.as_ref().map(|(certificate, key)| wire::acceptor(certificate, key)).transpose()?;
        let log = config.log.as_ref().map(|path| {
            File::options()
                .create(true)
                .append(true)
                .open(path)
                .with_context(|| format!("log {}", path.display()))
        });
        let shared = Arc::new(Shared {
            upstream,
            drop_conditional: config.drop_conditional,
            credentials: config.credentials,
            rules: RwLock::new(config.faults.into()),
            random: Mutex::new(fastrand::Rng::with_seed(config.seed)),
            log: log.transpose()?.map(Mutex::new),
            keep_records: config.keep_records,
            records: Mutex::new(Vec::new()),
            started: Instant::now(),
            requests: AtomicU64::new(0),
        });
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("s3-proxy")
            .enable_all()
            .build()
            .context("starting the proxy's threads")?;
        let listener = std::net::TcpListener::bind(config.listen)
            .with_context(|| format!("listening on {}", config.listen))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let scheme = if tls.is_some() { "https" } else { "http" };
        let guard = runtime.enter();
        let listener = TcpListener::from_std(listener)?;
        drop(guard);
        runtime.spawn(accept(listener, tls, Arc::clone(&shared)));
        Ok(Self { address, scheme, shared, runtime: Some(runtime) })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What clients take as their endpoint.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("{}://{}", self.scheme, self.address)
    }

    /// The records of all requests that were answered, in the order of their answers.
    #[must_use]
    pub fn records(&self) -> Vec<Record> {
        locked(&self.shared.records).clone()
    }

    /// Takes the records out: the next call begins anew.
    #[must_use]
    pub fn take_records(&self) -> Vec<Record> {
        std::mem::take(&mut *locked(&self.shared.records))
    }

    /// Replaces the fault rules; their counting begins anew.
    pub fn set_faults(&self, rules: Vec<Rule>) {
        *self.shared.rules.write().unwrap_or_else(PoisonError::into_inner) = rules.into();
    }

    /// The rules in force, with the numbers of their applications.
    #[must_use]
    pub fn faults(&self) -> Arc<[Rule]> {
        self.shared.rules()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

struct Shared {
    upstream: Upstream,
    drop_conditional: bool,
    credentials: Option<Credentials>,
    rules: RwLock<Arc<[Rule]>>,
    random: Mutex<fastrand::Rng>,
    log: Option<Mutex<File>>,
    keep_records: bool,
    records: Mutex<Vec<Record>>,
    started: Instant,
    requests: AtomicU64,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("requests", &self.requests).finish_non_exhaustive()
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn millis(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

async fn accept(listener: TcpListener, tls: Option<tokio_rustls::TlsAcceptor>, shared: Arc<Shared>) {
    loop {
        let Ok((tcp, _)) = listener.accept().await else {
            // Out of descriptors, most likely: let others finish first.
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        tokio::spawn(connection(tcp, tls.clone(), Arc::clone(&shared)));
    }
}

async fn connection(tcp: TcpStream, tls: Option<tokio_rustls::TlsAcceptor>, shared: Arc<Shared>) {
    let _ = tcp.set_nodelay(true);
    let abort = Arc::new(AtomicBool::new(false));
    let wire = Wire::new(tcp, Arc::clone(&abort));
    // How a connection ends is the client's affair; what was asked on it is in the records.
    match tls {
        None => serve(TokioIo::new(wire), abort, shared).await,
        Some(tls) => {
            if let Ok(stream) = tls.accept(wire).await {
                serve(TokioIo::new(stream), abort, shared).await;
            }
        }
    }
}

async fn serve<T>(io: T, abort: Arc<AtomicBool>, shared: Arc<Shared>)
where
    T: hyper::rt::Read + hyper::rt::Write + Send + Unpin + 'static,
{
    let lane = Arc::new(tokio::sync::Mutex::new(Lane::new()));
    let service = service_fn(|request| {
        let (shared, lane, abort) = (Arc::clone(&shared), Arc::clone(&lane), Arc::clone(&abort));
        async move {
            let mut lane = lane.lock().await;
            shared.handle(request, &mut lane).await.inspect_err(|Reset| abort.store(true, Ordering::SeqCst))
        }
    });
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(io, service).await;
}

/// The connection is to be reset.
#[derive(Debug)]
struct Reset;

impl std::fmt::Display for Reset {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("reset")
    }
}

impl std::error::Error for Reset {}

type Answer = Response<BoxBody<Bytes, BodyError>>;

impl Shared {
    fn rules(&self) -> Arc<[Rule]> {
        Arc::clone(&self.rules.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn plan(&self, record: &Record) -> Plan {
        let mut plan = Plan::default();
        for rule in &*self.rules() {
            let request = (record.method.as_str(), record.operation.as_str(), record.key.as_str());
            rule.apply(request, || locked(&self.random).f64(), &mut plan);
        }
        plan
    }

    /// Writes the record, with what is known at the end.
    fn note(&self, mut record: Record, begun: Instant, count: &AtomicU64, status: Option<u16>) {
        record.took_ms = millis(begun);
        record.request_bytes = count.load(Ordering::SeqCst);
        record.status = status;
        if let Some(log) = &self.log {
            let line = format!("{}\n", record.to_json());
            if let Err(error) = locked(log).write_all(line.as_bytes()) {
                record.error = Some(format!("writing the log: {error}"));
            }
        }
        if self.keep_records {
            locked(&self.records).push(record);
        }
    }

    async fn handle(
        &self,
        request: Request<Incoming>,
        lane: &mut Lane<Treated<Incoming>>,
    ) -> Result<Answer, Reset> {
        let begun = Instant::now();
        let (mut head, incoming) = request.into_parts();
        let (path, query) = (head.uri.path().to_owned(), head.uri.query().unwrap_or_default().to_owned());
        let mut record = Record::new(head.method.as_str(), &path, &query, &head.headers);
        record.number = self.requests.fetch_add(1, Ordering::SeqCst) + 1;
        record.at_ms = millis(self.started);
        let mut plan = self.plan(&record);
        record.faults = std::mem::take(&mut plan.rules);
        if !plan.delay.is_zero() {
            tokio::time::sleep(plan.delay).await;
        }

        let count = Arc::new(AtomicU64::new(0));
        if plan.reset_before {
            self.note(record, begun, &count, None);
            return Err(Reset);
        }
        let treatment = Treatment {
            count: Arc::clone(&count),
            cut: plan.cut,
            limiters: plan.limiters.clone(),
            ..Treatment::default()
        };
        let body = Treated::new(incoming, treatment);
        if plan.reset_after || plan.status.is_some() {
            drain(body).await;
            let answer =
                plan.status.filter(|_| !plan.reset_after).map(|status| injected(status, plan.retry_after));
            self.note(record, begun, &count, answer.as_ref().map(|a| a.status().as_u16()));
            return answer.ok_or(Reset);
        }

        if self.drop_conditional && (head.method == Method::PUT || head.method == Method::POST) {
            match self.without_conditions(&head.method, (&path, &query), &mut head.headers) {
                Ok(dropped) => record.dropped = dropped,
                Err(error) => return Ok(self.failed(record, begun, &count, &error)),
            }
        }
        strip(&mut head.headers);
        head.uri = origin_form(&head.uri);
        let request = Request::from_parts(head, body);
        match lane.send(&self.upstream, request).await {
            Ok(answer) => {
                record.upstream_status = Some(answer.status().as_u16());
                record.response_bytes = http_length(answer.headers());
                if plan.drop_answer {
                    drain(answer.into_body()).await;
                    self.note(record, begun, &count, None);
                    return Err(Reset);
                }
                self.note(record, begun, &count, Some(answer.status().as_u16()));
                Ok(passed_on(answer, plan))
            }
            Err(_) if plan.cut.is_some() => {
                self.note(record, begun, &count, None);
                Err(Reset)
            }
            Err(error) => Ok(self.failed(record, begun, &count, &error)),
        }
    }

    fn failed(&self, mut record: Record, begun: Instant, count: &AtomicU64, error: &anyhow::Error) -> Answer {
        let text = format!("{error:#}");
        record.error = Some(text.clone());
        self.note(record, begun, count, Some(502));
        answer(StatusCode::BAD_GATEWAY, "BadGateway", &text)
    }

    /// Takes the conditional headers away; signs again where the client had signed them.
    fn without_conditions(
        &self,
        method: &Method,
        target: (&str, &str),
        headers: &mut HeaderMap,
    ) -> Result<Vec<String>> {
        let mut dropped = Vec::new();
        let mut signed = false;
        for name in CONDITIONAL {
            signed |= headers.contains_key(*name) && sign::covers(headers, name);
            if headers.remove(*name).is_some() {
                dropped.push((*name).to_owned());
            }
        }
        if signed {
            let credentials = self.credentials.as_ref();
            let credentials =
                credentials.context("the client signs its conditional headers: credentials needed")?;
            sign::again(credentials, method.as_str(), target, headers)?;
        }
        Ok(dropped)
    }
}

/// Reads a body to its end, or to its error.
async fn drain<B: hyper::body::Body + Unpin>(mut body: B) {
    while let Some(Ok(_)) = body.frame().await {}
}

fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all("connection")
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named {
        headers.remove(name);
    }
    for name in HOP_BY_HOP {
        headers.remove(*name);
    }
}

fn origin_form(uri: &Uri) -> Uri {
    uri.path_and_query().map_or_else(|| Uri::from_static("/"), |path| Uri::from(path.clone()))
}

fn http_length(headers: &HeaderMap) -> Option<u64> {
    headers.get("content-length")?.to_str().ok()?.parse().ok()
}

fn passed_on(answer: Response<Incoming>, plan: Plan) -> Answer {
    let (mut head, body) = answer.into_parts();
    strip(&mut head.headers);
    let treatment =
        Treatment { cut: plan.truncate, flip: plan.flip, limiters: plan.limiters, ..Treatment::default() };
    Response::from_parts(head, Treated::new(body, treatment).boxed())
}

fn injected(status: u16, retry_after: Option<u64>) -> Answer {
    let code = match status {
        403 => "AccessDenied",
        404 => "NoSuchKey",
        408 => "RequestTimeout",
        409 => "ConditionalRequestConflict",
        412 => "PreconditionFailed",
        429 => "TooManyRequests",
        500 => "InternalError",
        503 => "SlowDown",
        _ => "Injected",
    };
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut answer = answer(status, code, "injected by a fault rule of the test proxy");
    if let Some(seconds) = retry_after {
        answer.headers_mut().insert("retry-after", HeaderValue::from(seconds));
    }
    answer
}

/// An error as S3 words it.
fn answer(status: StatusCode, code: &str, message: &str) -> Answer {
    let message = message.replace('&', "&amp;").replace('<', "&lt;");
    let xml = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code><Message>{message}</Message></Error>"
    );
    let body = Full::new(Bytes::from(xml)).map_err(|never| match never {}).boxed();
    let mut answer = Response::new(body);
    *answer.status_mut() = status;
    answer.headers_mut().insert("content-type", HeaderValue::from_static("application/xml"));
    answer
}

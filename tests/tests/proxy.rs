//! The test proxy itself, in front of a tiny object store.
#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic as the test itself does")]

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::HeaderMap;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tradewind_tests::proxy::{Config, Credentials, Proxy, Record};

/// Holds objects by path; knows If-None-Match; remembers every request.
#[derive(Default)]
struct Store {
    objects: Mutex<HashMap<String, Bytes>>,
    seen: Mutex<Vec<(String, HeaderMap)>>,
    /// Bodies that broke off, by the bytes that had come.
    broken: Mutex<Vec<usize>>,
    connections: AtomicU64,
    close_each: bool,
}

impl Store {
    fn object(&self, path: &str) -> Option<Bytes> {
        self.objects.lock().unwrap().get(path).cloned()
    }

    fn seen(&self) -> usize {
        self.seen.lock().unwrap().len()
    }

    async fn answer(&self, request: Request<Incoming>) -> Result<Response<Full<Bytes>>> {
        let (head, mut body) = request.into_parts();
        let target = head.uri.to_string();
        self.seen.lock().unwrap().push((format!("{} {target}", head.method), head.headers.clone()));
        let mut data = Vec::new();
        while let Some(frame) = body.frame().await {
            match frame {
                Ok(frame) => data.extend_from_slice(&frame.into_data().unwrap_or_default()),
                Err(error) => {
                    self.broken.lock().unwrap().push(data.len());
                    return Err(error.into());
                }
            }
        }
        let path = head.uri.path().to_owned();
        let mut objects = self.objects.lock().unwrap();
        let (status, body) = match head.method.as_str() {
            "PUT" if head.headers.contains_key("if-none-match") && objects.contains_key(&path) => {
                (412, Bytes::from_static(b"it is there"))
            }
            "PUT" => {
                objects.insert(path, data.into());
                (200, Bytes::new())
            }
            "GET" | "HEAD" => objects.get(&path).map_or((404, Bytes::new()), |data| (200, data.clone())),
            _ => (204, Bytes::new()),
        };
        let mut response = Response::builder().status(status).header("x-from", "the store");
        if head.method == "HEAD" {
            response = response.header("content-length", body.len());
        }
        if self.close_each {
            response = response.header("connection", "close");
        }
        let body = if head.method == "HEAD" { Bytes::new() } else { body };
        Ok(response.body(Full::new(body))?)
    }

    async fn listen(self: Arc<Self>, tls: Option<TlsAcceptor>) -> Result<SocketAddr> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        tokio::spawn(async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                self.connections.fetch_add(1, Ordering::SeqCst);
                let (store, tls) = (Arc::clone(&self), tls.clone());
                tokio::spawn(async move {
                    let service = service_fn(|request| store.answer(request));
                    let http = hyper::server::conn::http1::Builder::new();
                    match tls {
                        None => drop(http.serve_connection(TokioIo::new(tcp), service).await),
                        Some(tls) => {
                            let io = TokioIo::new(tls.accept(tcp).await.unwrap());
                            drop(http.serve_connection(io, service).await);
                        }
                    }
                });
            }
        });
        Ok(address)
    }
}

struct Client {
    sender: SendRequest<Full<Bytes>>,
    host: String,
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
    /// Whether the body came to its end.
    whole: bool,
}

impl Client {
    async fn new(proxy: &Proxy, ca: Option<&Path>) -> Result<Self> {
        let tcp = TcpStream::connect(proxy.address()).await?;
        let host = proxy.address().to_string();
        let sender = match ca {
            None => spoken(TokioIo::new(tcp)).await?,
            Some(ca) => {
                let mut roots = RootCertStore::empty();
                roots.add(CertificateDer::from_pem_file(ca)?)?;
                let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
                let name = ServerName::try_from("127.0.0.1")?;
                spoken(TokioIo::new(TlsConnector::from(Arc::new(config)).connect(name, tcp).await?)).await?
            }
        };
        Ok(Self { sender, host })
    }

    async fn ask(
        &mut self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: Vec<u8>,
    ) -> Result<Answer> {
        let mut request = Request::builder().method(method).uri(target).header("host", &self.host);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.sender.ready().await?;
        let (head, mut body) =
            self.sender.send_request(request.body(Full::new(body.into()))?).await?.into_parts();
        let (mut data, mut whole) = (Vec::new(), true);
        while let Some(frame) = body.frame().await {
            match frame {
                Ok(frame) => data.extend_from_slice(&frame.into_data().unwrap_or_default()),
                Err(_) => whole = false,
            }
        }
        Ok(Answer { status: head.status, headers: head.headers, body: data.into(), whole })
    }

    async fn put(&mut self, path: &str, body: Vec<u8>) -> Result<StatusCode> {
        Ok(self.ask("PUT", path, &[], body).await?.status)
    }
}

async fn spoken<T>(io: T) -> Result<SendRequest<Full<Bytes>>>
where
    T: hyper::rt::Read + hyper::rt::Write + Send + Unpin + 'static,
{
    let (sender, connection) = handshake(io).await?;
    tokio::spawn(connection);
    Ok(sender)
}

/// A store, a proxy with these rules, a client.
async fn bed(rules: &[&str]) -> Result<(Arc<Store>, Proxy, Client)> {
    bed_with(rules, Store::default(), |_| {}).await
}

async fn bed_with(
    rules: &[&str],
    store: Store,
    change: impl FnOnce(&mut Config),
) -> Result<(Arc<Store>, Proxy, Client)> {
    let store = Arc::new(store);
    let address = Arc::clone(&store).listen(None).await?;
    let mut config = Config::new(&format!("http://{address}"));
    config.faults = rules.iter().map(|rule| rule.parse()).collect::<Result<_>>()?;
    change(&mut config);
    let proxy = Proxy::start(config)?;
    let client = Client::new(&proxy, None).await?;
    Ok((store, proxy, client))
}

fn some_bytes(length: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(length as u64);
    std::iter::repeat_with(|| random.u8(..)).take(length).collect()
}

fn the_record(proxy: &Proxy) -> Record {
    let mut records = proxy.take_records();
    assert_eq!(records.len(), 1, "{records:?}");
    records.remove(0)
}

#[tokio::test]
async fn requests_and_answers_pass_unchanged_and_are_recorded() -> Result<()> {
    let (store, proxy, mut client) = bed(&[]).await?;
    let data = some_bytes(3_000_001);
    let headers = [
        ("x-amz-content-sha256", "UNSIGNED-PAYLOAD"),
        ("x-amz-checksum-crc64nvme", "abc="),
        ("authorization", "secret-x"),
    ];
    let target = "/bucket/a%2Fb//c%20d?partNumber=2&uploadId=u%2F1&x-id=UploadPart";
    let answer = client.ask("PUT", target, &headers, data.clone()).await?;
    assert_eq!((answer.status, answer.headers["x-from"].to_str()?), (StatusCode::OK, "the store"));

    let (line, seen) = store.seen.lock().unwrap()[0].clone();
    assert_eq!(line, format!("PUT {target}"));
    assert_eq!(seen["host"].to_str()?, proxy.address().to_string(), "signatures cover the host");
    assert_eq!(seen["authorization"], "secret-x");
    assert_eq!(seen["content-length"], "3000001");
    assert!(!seen.contains_key("transfer-encoding"));

    let record = the_record(&proxy);
    assert_eq!(
        (record.operation.as_str(), record.bucket.as_str(), record.key.as_str()),
        ("UploadPart", "bucket", "a/b//c d")
    );
    assert_eq!(
        (record.request_bytes, record.status, record.upstream_status),
        (3_000_001, Some(200), Some(200))
    );
    assert_eq!(record.header("x-amz-content-sha256"), Some("UNSIGNED-PAYLOAD"));
    assert_eq!(record.header("x-amz-checksum-crc64nvme"), Some("abc="));
    assert!(record.signed && !record.to_json().to_string().contains("secret-x"));

    let answer = client.ask("GET", "/bucket/a%2Fb//c%20d", &[], vec![]).await?;
    assert!(answer.whole && answer.body == data);
    let answer = client.ask("HEAD", "/bucket/a%2Fb//c%20d", &[], vec![]).await?;
    assert_eq!(answer.headers["content-length"], "3000001");
    let answer = client.ask("DELETE", "/bucket/x", &[], vec![]).await?;
    assert_eq!(answer.status, StatusCode::NO_CONTENT);
    assert_eq!(proxy.take_records().len(), 3);
    assert_eq!(store.connections.load(Ordering::SeqCst), 1, "one connection of a client, one to the server");
    Ok(())
}

#[tokio::test]
async fn a_server_that_closes_kept_connections_is_not_noticed() -> Result<()> {
    let store = Store { close_each: true, ..Store::default() };
    let (store, _proxy, mut client) = bed_with(&[], store, |_| {}).await?;
    for i in 0..20 {
        assert_eq!(client.put(&format!("/b/{i}"), some_bytes(1000)).await?, 200);
    }
    assert_eq!(store.connections.load(Ordering::SeqCst), 20);
    Ok(())
}

#[tokio::test]
async fn conditional_headers_are_dropped_on_demand_only() -> Result<()> {
    let condition = [("if-none-match", "*")];
    let (_store, proxy, mut client) = bed(&[]).await?;
    assert_eq!(client.ask("PUT", "/b/k", &condition, b"1".to_vec()).await?.status, 200);
    assert_eq!(client.ask("PUT", "/b/k", &condition, b"2".to_vec()).await?.status, 412);
    assert_eq!(proxy.records()[0].header("if-none-match"), Some("*"));

    let (store, proxy, mut client) = bed_with(&[], Store::default(), |c| c.drop_conditional = true).await?;
    client.ask("PUT", "/b/k", &condition, b"1".to_vec()).await?;
    assert_eq!(client.ask("PUT", "/b/k", &condition, b"2".to_vec()).await?.status, 200);
    assert_eq!(store.object("/b/k"), Some(Bytes::from_static(b"2")));
    assert_eq!(proxy.records()[1].dropped, ["if-none-match"]);
    // Only writes are meant: a conditional GET stays what it is.
    client.ask("GET", "/b/k", &[("if-match", "x")], vec![]).await?;
    assert!(store.seen.lock().unwrap()[2].1.contains_key("if-match"));
    Ok(())
}

#[tokio::test]
async fn a_signed_condition_needs_credentials_and_is_signed_again() -> Result<()> {
    let headers = [
        ("if-none-match", "*"),
        ("x-amz-date", "20260101T000000Z"),
        ("x-amz-content-sha256", "UNSIGNED-PAYLOAD"),
        (
            "authorization",
            "AWS4-HMAC-SHA256 Credential=me/20260101/us-east-1/s3/aws4_request, \
             SignedHeaders=host;if-none-match;x-amz-content-sha256;x-amz-date, Signature=0",
        ),
    ];
    let (store, proxy, mut client) = bed_with(&[], Store::default(), |c| c.drop_conditional = true).await?;
    assert_eq!(client.ask("PUT", "/b/k", &headers, vec![]).await?.status, 502);
    assert!(the_record(&proxy).error.context("an error")?.contains("credentials needed"));
    assert_eq!(store.seen(), 0);

    let credentials = Credentials { access_key: "me".to_owned(), secret_key: "mine".to_owned() };
    let change = |c: &mut Config| (c.drop_conditional, c.credentials) = (true, Some(credentials));
    let (store, _proxy, mut client) = bed_with(&[], Store::default(), change).await?;
    assert_eq!(client.ask("PUT", "/b/k", &headers, vec![]).await?.status, 200);
    let seen = store.seen.lock().unwrap()[0].1["authorization"].to_str()?.to_owned();
    assert!(seen.contains("SignedHeaders=host;x-amz-content-sha256;x-amz-date, Signature="), "{seen}");
    assert!(!seen.ends_with("Signature=0"));
    Ok(())
}

#[tokio::test]
async fn statuses_are_injected_before_the_server_sees_anything() -> Result<()> {
    let (store, proxy, mut client) = bed(&["PUT,packs/,2,status=503,retry-after=7"]).await?;
    assert_eq!(client.put("/b/repo/packs/1", some_bytes(10)).await?, 200);
    assert_eq!(client.put("/b/repo/index/1", some_bytes(10)).await?, 200);
    let answer = client.ask("PUT", "/b/repo/packs/2", &[], some_bytes(500_000)).await?;
    assert_eq!((answer.status.as_u16(), answer.headers["retry-after"].to_str()?), (503, "7"));
    assert!(String::from_utf8_lossy(&answer.body).contains("<Code>SlowDown</Code>"));
    assert_eq!(client.put("/b/repo/packs/2", some_bytes(10)).await?, 200);
    assert_eq!(store.seen(), 3);
    let records = proxy.records();
    assert_eq!(
        (records[2].status, records[2].upstream_status, records[2].request_bytes),
        (Some(503), None, 500_000)
    );
    assert_eq!(records[2].faults, ["PUT,packs/,2,status=503,retry-after=7"]);
    assert_eq!(proxy.faults()[0].applied(), 1);
    Ok(())
}

#[tokio::test]
async fn connections_are_reset_before_and_after_the_body() -> Result<()> {
    for (rule, bytes) in [("PUT,*,1,reset=before", 0), ("PUT,*,1,reset=after", 200_000)] {
        let (store, proxy, mut client) = bed(&[rule]).await?;
        assert!(client.put("/b/k", some_bytes(200_000)).await.is_err(), "{rule}");
        let record = the_record(&proxy);
        assert_eq!((record.status, record.request_bytes), (None, bytes), "{rule}");
        assert_eq!(store.seen(), 0);
        let mut client = Client::new(&proxy, None).await?;
        assert_eq!(client.put("/b/k", some_bytes(5)).await?, 200);
    }
    Ok(())
}

#[tokio::test]
async fn a_reset_is_a_reset_and_no_orderly_end() -> Result<()> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let (_store, proxy, _client) = bed(&["GET,*,*,drop"]).await?;
    let mut tcp = TcpStream::connect(proxy.address()).await?;
    tcp.write_all(b"GET /b/k HTTP/1.1\r\nhost: x\r\n\r\n").await?;
    let error = tcp.read(&mut [0; 100]).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    Ok(())
}

#[tokio::test]
async fn an_answer_can_be_dropped_after_the_server_applied_the_request() -> Result<()> {
    let (store, proxy, mut client) = bed(&["PutObject,*,1,drop"]).await?;
    assert!(client.put("/b/k", b"applied".to_vec()).await.is_err());
    assert_eq!(store.object("/b/k"), Some(Bytes::from_static(b"applied")));
    let record = the_record(&proxy);
    assert_eq!((record.upstream_status, record.status), (Some(200), None));
    Ok(())
}

#[tokio::test]
async fn a_request_can_be_cut_on_its_way_to_the_server() -> Result<()> {
    let (store, proxy, mut client) = bed(&["PUT,*,1,cut=100000"]).await?;
    assert!(client.put("/b/k", some_bytes(1_000_000)).await.is_err());
    assert_eq!(the_record(&proxy).request_bytes, 100_000);
    assert_eq!(store.object("/b/k"), None);
    let until = Instant::now() + Duration::from_secs(10);
    while store.broken.lock().unwrap().is_empty() {
        assert!(Instant::now() < until, "the server never saw the end of the connection");
        tokio::task::yield_now().await;
    }
    assert!(store.broken.lock().unwrap()[0] <= 100_000);
    Ok(())
}

#[tokio::test]
async fn answers_can_be_truncated_and_damaged() -> Result<()> {
    let (_store, _proxy, mut client) = bed(&["GET,cut,*,truncate=70000", "GET,bad,*,flip=123456"]).await?;
    let data = some_bytes(300_000);
    client.put("/b/cut", data.clone()).await?;
    client.put("/b/bad", data.clone()).await?;

    let answer = client.ask("GET", "/b/bad", &[], vec![]).await?;
    assert!(answer.whole);
    let differing: Vec<usize> = (0..data.len()).filter(|&i| data[i] != answer.body[i]).collect();
    assert_eq!(differing, [123_456]);
    assert_eq!(answer.body[123_456], data[123_456] ^ 1);

    let answer = client.ask("GET", "/b/cut", &[], vec![]).await?;
    assert_eq!(answer.headers["content-length"], "300000");
    assert!(!answer.whole);
    assert_eq!(answer.body, data[..70_000]);
    Ok(())
}

#[tokio::test]
async fn delays_and_rates_hold() -> Result<()> {
    let (_store, proxy, mut client) = bed(&["PUT,*,*,rate=1000000", "DELETE,*,*,delay=150"]).await?;
    let begun = Instant::now();
    client.put("/b/k", some_bytes(400_000)).await?;
    assert!(begun.elapsed() >= Duration::from_millis(395), "{:?}", begun.elapsed());
    // The rate is one for all: two at a time take as long as one after the other.
    let mut other = Client::new(&proxy, None).await?;
    let begun = Instant::now();
    let (a, b) =
        tokio::join!(client.put("/b/1", some_bytes(200_000)), other.put("/b/2", some_bytes(200_000)));
    assert_eq!((a?, b?), (StatusCode::OK, StatusCode::OK));
    assert!(begun.elapsed() >= Duration::from_millis(395), "{:?}", begun.elapsed());
    let begun = Instant::now();
    client.ask("DELETE", "/b/k", &[], vec![]).await?;
    assert!(begun.elapsed() >= Duration::from_millis(150));
    Ok(())
}

#[tokio::test]
async fn probabilities_follow_the_seed() -> Result<()> {
    let mut outcomes = Vec::new();
    for seed in [5, 5, 6] {
        let (_store, _proxy, mut client) =
            bed_with(&["GET,*,p0.5,status=500"], Store::default(), |c| c.seed = seed).await?;
        let mut outcome = Vec::new();
        for _ in 0..40 {
            outcome.push(client.ask("GET", "/b/none", &[], vec![]).await?.status.as_u16());
        }
        assert!(outcome.contains(&500) && outcome.contains(&404));
        outcomes.push(outcome);
    }
    assert!(outcomes[0] == outcomes[1] && outcomes[0] != outcomes[2]);
    Ok(())
}

#[tokio::test]
async fn rules_can_be_changed_while_it_runs() -> Result<()> {
    let (_store, proxy, mut client) = bed(&["*,*,*,status=429"]).await?;
    assert_eq!(client.put("/b/k", vec![]).await?, 429);
    proxy.set_faults(vec![]);
    assert_eq!(client.put("/b/k", vec![]).await?, 200);
    Ok(())
}

#[tokio::test]
async fn the_log_has_one_json_line_per_request() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let log = dir.path().join("log");
    let (_store, _proxy, mut client) =
        bed_with(&["PUT,two,*,status=503"], Store::default(), |c| c.log = Some(log.clone())).await?;
    client.put("/b/one", some_bytes(10)).await?;
    client.put("/b/two", some_bytes(20)).await?;
    let lines: Vec<serde_json::Value> =
        std::fs::read_to_string(&log)?.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    assert_eq!(lines.len(), 2);
    assert_eq!(
        (&lines[0]["key"], &lines[0]["request_bytes"], &lines[0]["status"]),
        (&"one".into(), &10.into(), &200.into())
    );
    assert_eq!((&lines[1]["status"], &lines[1]["upstream_status"]), (&503.into(), &serde_json::Value::Null));
    Ok(())
}

fn certificate(dir: &Path) -> Result<(PathBuf, PathBuf)> {
    let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()])?;
    let (certificate, key) = (dir.join("cert.pem"), dir.join("key.pem"));
    std::fs::write(&certificate, made.cert.pem())?;
    std::fs::write(&key, made.signing_key.serialize_pem())?;
    Ok((certificate, key))
}

#[tokio::test]
async fn it_speaks_tls_on_both_sides() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (cert, key) = certificate(dir.path())?;
    let config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![CertificateDer::from_pem_file(&cert)?], PrivateKeyDer::from_pem_file(&key)?)?;
    let store = Arc::new(Store::default());
    let address = Arc::clone(&store).listen(Some(TlsAcceptor::from(Arc::new(config)))).await?;

    let mut config = Config::new(&format!("https://{address}"));
    config.upstream_ca = Some(cert.clone());
    config.tls = Some((cert.clone(), key));
    config.faults = vec!["GET,*,2,drop".parse()?];
    let proxy = Proxy::start(config)?;
    assert!(proxy.endpoint().starts_with("https://127.0.0.1:"));
    let mut client = Client::new(&proxy, Some(&cert)).await?;
    let data = some_bytes(2_000_000);
    assert_eq!(client.put("/b/k", data.clone()).await?, 200);
    assert_eq!(client.ask("GET", "/b/k", &[], vec![]).await?.body, data);
    assert!(client.ask("GET", "/b/k", &[], vec![]).await.is_err());
    Ok(())
}

#[tokio::test]
async fn a_server_that_is_not_there_is_said() -> Result<()> {
    let unused = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let proxy = Proxy::start(Config::new(&format!("http://{unused}")))?;
    let mut client = Client::new(&proxy, None).await?;
    assert_eq!(client.put("/b/k", vec![]).await?, 502);
    assert!(the_record(&proxy).error.context("an error")?.contains("connecting to 127.0.0.1"));
    Ok(())
}

#[test]
fn a_bad_configuration_is_refused() {
    for upstream in ["127.0.0.1:80", "ftp://127.0.0.1:80", "http://127.0.0.1", "https://127.0.0.1:443"] {
        assert!(Proxy::start(Config::new(upstream)).is_err(), "{upstream}");
    }
}

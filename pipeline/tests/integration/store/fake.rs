//! A server that answers as it is told and remembers what it was asked, over HTTP or over TLS with a private CA.

use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use tradewind_pipeline::store::s3::{S3Config, S3Store};

/// A request that arrived, whole.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) method: String,
    /// Path and query.
    pub(crate) target: String,
    headers: hyper::HeaderMap,
    pub(crate) body: Bytes,
}

impl Asked {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|v| v.to_str().unwrap())
    }
}

/// An answer. `None` closes the connection instead.
pub(crate) type Answer = Option<Response<Full<Bytes>>>;

/// An answer with a status, headers and a body.
pub(crate) fn answer(status: u16, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Answer {
    let mut response = Response::builder().status(status);
    for (name, value) in headers {
        response = response.header(*name, *value);
    }
    Some(response.body(Full::new(body.into())).unwrap())
}

/// An error as S3 words it.
pub(crate) fn refusal(status: u16, code: &str) -> Answer {
    let body =
        format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>Said {code}.</Message></Error>");
    answer(status, &[("content-type", "application/xml"), ("x-amz-request-id", "R1")], body)
}

/// The running server.
pub(crate) struct Fake {
    pub(crate) endpoint: String,
    asked: Arc<Mutex<Vec<Asked>>>,
    dir: tempfile::TempDir,
    tls: bool,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Fake {
    /// Starts a server that answers every request with what `respond` says.
    pub(crate) async fn start(tls: bool, respond: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let secrets = "[default]\naws_access_key_id = AKID\naws_secret_access_key = secret\n";
        std::fs::write(dir.path().join("credentials"), secrets).unwrap();
        let acceptor = tls.then(|| certified(dir.path()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let scheme = if tls { "https" } else { "http" };
        let endpoint = format!("{scheme}://127.0.0.1:{}", listener.local_addr().unwrap().port());
        let (asked, respond) = (Arc::new(Mutex::new(Vec::new())), Arc::new(respond));
        let seen = asked.clone();
        let task = tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (acceptor, seen, respond) = (acceptor.clone(), seen.clone(), respond.clone());
                tokio::spawn(async move {
                    let service = service_fn(move |request: Request<Incoming>| {
                        let (seen, respond) = (seen.clone(), respond.clone());
                        async move {
                            let (head, body) = request.into_parts();
                            let body = body.collect().await.map_err(|e| e.to_string())?.to_bytes();
                            let (method, target) = (head.method.to_string(), head.uri.to_string());
                            let asked = Asked { method, target, headers: head.headers, body };
                            seen.lock().unwrap().push(asked.clone());
                            respond(&asked).ok_or_else(|| "closed".to_owned())
                        }
                    });
                    let http = hyper::server::conn::http1::Builder::new();
                    let _ = match acceptor {
                        None => http.serve_connection(TokioIo::new(socket), service).await,
                        Some(tls) => match tls.accept(socket).await {
                            Ok(socket) => http.serve_connection(TokioIo::new(socket), service).await,
                            Err(_) => Ok(()),
                        },
                    };
                    Ok::<_, Infallible>(())
                });
            }
        });
        Self { endpoint, asked, dir, tls, task }
    }

    /// How to reach it.
    pub(crate) fn config(&self) -> S3Config {
        S3Config {
            bucket: "bucket".into(),
            prefix: "pre/fix".into(),
            endpoint: Some(self.endpoint.clone()),
            region: Some("us-east-1".into()),
            ca_file: self.tls.then(|| self.file("ca.pem")),
            credentials_file: Some(self.file("credentials")),
            ..S3Config::default()
        }
    }

    /// A store there.
    pub(crate) async fn store(&self) -> S3Store {
        S3Store::connect(&self.config()).await.unwrap()
    }

    /// What was asked so far, which is forgotten.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

/// Makes a CA and a certificate of it for 127.0.0.1; leaves the CA in `dir`.
fn certified(dir: &std::path::Path) -> TlsAcceptor {
    let mut ca = rcgen::CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca_key = rcgen::KeyPair::generate().unwrap();
    std::fs::write(dir.join("ca.pem"), ca.self_signed(&ca_key).unwrap().pem()).unwrap();
    let issuer = rcgen::Issuer::new(ca, ca_key);
    let key = rcgen::KeyPair::generate().unwrap();
    let server = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let certificate = server.signed_by(&key, &issuer).unwrap();
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .unwrap();
    TlsAcceptor::from(Arc::new(config))
}

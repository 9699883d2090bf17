//! Connections: a socket that can be reset on demand, TLS on either side, the way to the server.

use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use anyhow::{Context as _, Result, bail};
use hyper::Request;
use hyper::body::{Body, Incoming};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::rustls::crypto::aws_lc_rs::default_provider;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::body::BodyError;

/// A client's socket. When `abort` is set, nothing more is sent and closing it sends a reset.
pub(super) struct Wire {
    tcp: TcpStream,
    abort: Arc<AtomicBool>,
}

impl Wire {
    pub(super) fn new(tcp: TcpStream, abort: Arc<AtomicBool>) -> Self {
        Self { tcp, abort }
    }

    fn aborted(&self) -> bool {
        self.abort.load(Ordering::SeqCst)
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        if self.aborted() {
            // Best effort: without it the client sees an orderly end instead of a reset, and no answer all the same.
            let _ = self.tcp.set_zero_linger();
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_read(cx, buf)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.aborted() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        Pin::new(&mut self.tcp).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.aborted() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        Pin::new(&mut self.tcp).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.aborted() {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}

/// TLS towards the clients, HTTP/1.1 only.
pub(super) fn acceptor(certificate: &Path, key: &Path) -> Result<TlsAcceptor> {
    let chain: Vec<_> = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect)
        .with_context(|| format!("certificate {}", certificate.display()))?;
    let key = PrivateKeyDer::from_pem_file(key).with_context(|| format!("key {}", key.display()))?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// The server behind the proxy.
pub(super) struct Upstream {
    host: String,
    port: u16,
    tls: Option<(TlsConnector, ServerName<'static>)>,
}

impl Upstream {
    /// `http://host:port` or `https://host:port`, the latter with the CA to trust.
    pub(super) fn new(url: &str, ca: Option<&Path>) -> Result<Self> {
        let (scheme, rest) = url.split_once("://").with_context(|| format!("'{url}' is no URL"))?;
        let authority = rest.trim_end_matches('/');
        let (host, port) = authority.rsplit_once(':').with_context(|| format!("'{url}' has no port"))?;
        let port = port.parse().with_context(|| format!("'{url}' has no port"))?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let tls = match scheme {
            "http" => None,
            "https" => {
                let ca = ca
                    .with_context(|| format!("{url} needs the file of the CA that signed its certificate"))?;
                let name =
                    ServerName::try_from(host.clone()).with_context(|| format!("'{host}' is no host"))?;
                Some((connector(ca)?, name))
            }
            other => bail!("'{url}': {other} is neither http nor https"),
        };
        Ok(Self { host, port, tls })
    }

    pub(super) async fn connect<B>(&self) -> Result<SendRequest<B>>
    where
        B: Body<Data = bytes::Bytes, Error = BodyError> + Send + Unpin + 'static,
    {
        let tcp = TcpStream::connect((self.host.as_str(), self.port))
            .await
            .with_context(|| format!("connecting to {}:{}", self.host, self.port))?;
        tcp.set_nodelay(true)?;
        match &self.tls {
            None => spoken(TokioIo::new(tcp)).await,
            Some((connector, name)) => {
                let tls = connector.connect(name.clone(), tcp).await;
                spoken(TokioIo::new(tls.with_context(|| format!("TLS with {}:{}", self.host, self.port))?))
                    .await
            }
        }
    }
}

fn connector(ca: &Path) -> Result<TlsConnector> {
    let mut roots = RootCertStore::empty();
    let certificates =
        CertificateDer::pem_file_iter(ca).with_context(|| format!("CA file {}", ca.display()))?;
    for certificate in certificates {
        roots.add(certificate.with_context(|| format!("CA file {}", ca.display()))?)?;
    }
    let mut config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsConnector::from(Arc::new(config)))
}

async fn spoken<T, B>(io: T) -> Result<SendRequest<B>>
where
    T: hyper::rt::Read + hyper::rt::Write + Send + Unpin + 'static,
    B: Body<Data = bytes::Bytes, Error = BodyError> + Send + Unpin + 'static,
{
    let (sender, connection) = handshake(io).await?;
    // Its errors reach whoever waits for the answer.
    tokio::spawn(connection);
    Ok(sender)
}

/// The connection to the server that belongs to one client's connection: made when needed, kept while it lasts.
pub(super) struct Lane<B>(Option<SendRequest<B>>);

impl<B> Lane<B>
where
    B: Body<Data = bytes::Bytes, Error = BodyError> + Send + Unpin + 'static,
{
    pub(super) fn new() -> Self {
        Self(None)
    }

    pub(super) async fn send(
        &mut self,
        upstream: &Upstream,
        mut request: Request<B>,
    ) -> Result<hyper::Response<Incoming>> {
        if let Some(mut kept) = self.0.take()
            && kept.ready().await.is_ok()
        {
            match kept.try_send_request(request).await {
                Ok(answer) => {
                    self.0 = Some(kept);
                    return Ok(answer);
                }
                // The server closed the kept connection before it saw the request: a new one will do.
                Err(mut error) => match error.take_message() {
                    Some(unsent) => request = unsent,
                    None => return Err(error.into_error().into()),
                },
            }
        }
        let mut fresh = upstream.connect().await?;
        let answer = fresh.send_request(request).await?;
        self.0 = Some(fresh);
        Ok(answer)
    }
}

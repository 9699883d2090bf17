//! From a configuration to a client.

use std::path::Path;
use std::time::Duration;

use aws_config::profile::ProfileFileCredentialsProvider;
use aws_config::{BehaviorVersion, Region};
use aws_runtime::env_config::file::{EnvConfigFileKind, EnvConfigFiles};
use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    RequestChecksumCalculation, ResponseChecksumValidation, RuntimeComponents, SharedHttpClient,
    StalledStreamProtectionConfig,
};
use aws_smithy_http_client::proxy::ProxyConfig;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore};
use aws_smithy_http_client::{Builder, Connector};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::deadline::CONNECT;
use super::{S3Config, unverified};
use crate::error::{Error, Result};

/// Where requests go when neither the user nor the environment names a region; most other stores accept it.
const DEFAULT_REGION: &str = "us-east-1";

/// Idle connections are kept this long: a little less than common servers do (60 s and more).
pub(super) const KEEP_IDLE: Duration = Duration::from_secs(50);

/// A client for `config` and whether its requests travel over TLS.
pub(super) async fn client(config: &S3Config) -> Result<(Client, bool)> {
    let private = config.ca_file.as_deref().map(trusted).transpose()?;
    // Credentials may come from Amazon's own services even when the objects do not.
    let anywhere = private.clone().map(|ca| TrustStore::default().with_pem_certificate(ca));
    let only = private.map(|ca| TrustStore::empty().with_pem_certificate(ca));

    let mut loader = aws_config::defaults(BehaviorVersion::v2026_01_12()).http_client(http_client(anywhere)?);
    if let Some(region) = &config.region {
        loader = loader.region(Region::new(region.clone()));
    }
    if let Some(profile) = &config.profile {
        loader = loader.profile_name(profile);
    }
    if let Some(file) = &config.credentials_file {
        // The provider would report a file that is missing as credentials that are.
        std::fs::File::open(file)
            .map_err(|e| Error::Usage(format!("file of credentials {}: {e}", file.display())))?;
        let files = EnvConfigFiles::builder()
            .include_default_config_file(config.shared_config)
            .with_file(EnvConfigFileKind::Credentials, file)
            .build();
        let mut credentials = ProfileFileCredentialsProvider::builder().profile_files(files);
        if let Some(profile) = &config.profile {
            credentials = credentials.profile_name(profile);
        }
        loader = loader.credentials_provider(credentials.build());
    }
    let shared = loader.load().await;
    let endpoint = config.endpoint.as_deref().or(shared.endpoint_url()).map(str::to_owned);
    let tls = !endpoint.as_ref().is_some_and(|e| e.starts_with("http://"));

    let objects =
        if config.insecure_skip_tls_verify { unverified::http_client()? } else { http_client(only)? };
    let mut builder = aws_sdk_s3::config::Builder::from(&shared)
        .http_client(objects)
        // Our own decorator retries, with knowledge of what may be repeated.
        .retry_config(RetryConfig::disabled())
        .timeout_config(TimeoutConfig::builder().connect_timeout(CONNECT).build())
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
        .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
        .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
        .force_path_style(config.path_style || endpoint.as_deref().is_some_and(has_no_subdomains));
    if shared.region().is_none() {
        builder = builder.region(Region::new(DEFAULT_REGION));
    }
    if let Some(endpoint) = endpoint {
        builder = builder.endpoint_url(endpoint);
    }
    Ok((Client::from_conf(builder.build()), tls))
}

fn http_client(trust: Option<TrustStore>) -> Result<SharedHttpClient> {
    let context = TlsContext::builder()
        .with_trust_store(trust.unwrap_or_default())
        .build()
        .map_err(|e| Error::Internal(format!("TLS: {e}")))?;
    Ok(Builder::new().pool_idle_timeout(KEEP_IDLE).build_with_connector_fn(move |settings, components| {
        let mut connector = Connector::builder()
            .pool_idle_timeout(KEEP_IDLE)
            .enable_tcp_nodelay(true)
            .proxy_config(ProxyConfig::from_env())
            .tls_provider(Provider::Rustls(CryptoMode::AwsLc))
            .tls_context(context.clone());
        connector.set_connector_settings(settings.cloned());
        connector.set_sleep_impl(components.and_then(RuntimeComponents::sleep_impl));
        connector.build()
    }))
}

/// The certificates of a PEM file, checked here because the SDK panics on one that it cannot read.
fn trusted(path: &Path) -> Result<Vec<u8>> {
    let unusable = |what: String| Error::Usage(format!("CA file {}: {what}", path.display()));
    let pem = std::fs::read(path).map_err(|e| unusable(e.to_string()))?;
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|e| unusable(format!("not PEM: {e}")))?;
        roots.add(certificate).map_err(|e| unusable(e.to_string()))?;
    }
    if roots.is_empty() { Err(unusable("no certificate in it".into())) } else { Ok(pem) }
}

/// True for hosts in front of which no bucket's name can be put.
fn has_no_subdomains(endpoint: &str) -> bool {
    let host = endpoint.split_once("://").map_or(endpoint, |(_, rest)| rest);
    let host = host.split('/').next().unwrap_or(host);
    host.starts_with('[') || {
        let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
        name == "localhost" || name.parse::<std::net::Ipv4Addr>().is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_without_subdomains() {
        for yes in ["http://localhost:9000", "https://127.0.0.1", "http://10.0.0.1:80/x", "http://[::1]:80"] {
            assert!(has_no_subdomains(yes), "{yes}");
        }
        for no in ["https://s3.example.com", "https://localhost.example.com:1", "https://minio:9000"] {
            assert!(!has_no_subdomains(no), "{no}");
        }
    }

    #[test]
    fn bad_ca_files_are_the_users_mistake() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("ca.pem");
        for bad in [
            "",
            "hello",
            "-----BEGIN CERTIFICATE-----\n!!\n-----END CERTIFICATE-----\n",
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        ] {
            std::fs::write(&file, bad).unwrap();
            assert!(matches!(trusted(&file), Err(Error::Usage(_))), "{bad}");
        }
        assert!(matches!(trusted(&dir.path().join("none")), Err(Error::Usage(_))));
    }
}

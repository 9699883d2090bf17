//! The real S3 servers start, keep their guarantees as far as the tests lean on them, and go with the test; through
//! the proxy that drops conditional headers the guarantee is gone. `tests/setup.sh servers` builds the servers.

use std::path::Path;

use anyhow::{Context, Result};
use aws_sdk_s3::Client;
use aws_sdk_s3::config::{BehaviorVersion, Credentials as SdkCredentials, Region};
use aws_sdk_s3::primitives::ByteStream;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore, rustls_provider::CryptoMode};
use tradewind_tests::loops::Loop;
use tradewind_tests::proxy::{Config, Credentials, Proxy};
use tradewind_tests::servers::{Kind, Server};

fn client(server: &Server, endpoint: &str, ca: Option<&Path>) -> Result<Client> {
    let credentials = SdkCredentials::new(&server.access_key, &server.secret_key, None, None, "test");
    let mut config = aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new(server.region.clone()))
        .credentials_provider(credentials)
        .endpoint_url(endpoint)
        .force_path_style(true);
    if let Some(ca) = ca {
        let trust = TrustStore::empty().with_pem_certificate(std::fs::read(ca)?);
        let tls = TlsContext::builder().with_trust_store(trust).build().context("TLS")?;
        let http = aws_smithy_http_client::Builder::new().tls_provider(Provider::Rustls(CryptoMode::AwsLc));
        config = config.http_client(http.tls_context(tls).build_https());
    }
    Ok(Client::from_conf(config.build()))
}

async fn put_if_absent(client: &Client, bucket: &str, key: &str, body: &'static [u8]) -> Result<(), u16> {
    let put = client.put_object().bucket(bucket).key(key).if_none_match("*");
    match put.body(ByteStream::from_static(body)).send().await {
        Ok(_) => Ok(()),
        Err(error) => Err(error.raw_response().map_or(0, |answer| answer.status().as_u16())),
    }
}

async fn get(client: &Client, bucket: &str, key: &str) -> Result<Vec<u8>> {
    let object = client.get_object().bucket(bucket).key(key).send().await?;
    Ok(object.body.collect().await?.to_vec())
}

#[tokio::test]
async fn versitygw_keeps_what_is_there_and_the_dropping_proxy_does_not() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let server = Server::start(Kind::Versitygw, dir.path())?;
    let direct = client(&server, &server.endpoint, server.ca_file.as_deref())?;
    assert_eq!(put_if_absent(&direct, &server.bucket, "a/key", b"first").await, Ok(()));
    assert_eq!(put_if_absent(&direct, &server.bucket, "a/key", b"second").await, Err(412));
    assert_eq!(get(&direct, &server.bucket, "a/key").await?, b"first");

    let mut config = Config::new(&server.endpoint);
    config.upstream_ca = server.ca_file.clone();
    config.drop_conditional = true;
    config.credentials =
        Some(Credentials { access_key: server.access_key.clone(), secret_key: server.secret_key.clone() });
    let proxy = Proxy::start(config)?;
    let through = client(&server, &proxy.endpoint(), None)?;
    assert_eq!(put_if_absent(&through, &server.bucket, "a/key", b"second").await, Ok(()));
    assert_eq!(get(&through, &server.bucket, "a/key").await?, b"second");
    let records = proxy.records();
    assert_eq!(records[0].dropped, ["if-none-match"]);
    assert_eq!(records[1].operation, "GetObject");
    Ok(())
}

#[tokio::test]
async fn s3s_fs_works_through_the_proxy() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let server = Server::start(Kind::S3sFs, dir.path())?;
    assert!(server.ca_file.is_none());
    let proxy = Proxy::start(Config::new(&server.endpoint))?;
    let client = client(&server, &proxy.endpoint(), None)?;
    let body = vec![7; 6 << 20];
    let created = client.create_multipart_upload().bucket(&server.bucket).key("m").send().await?;
    let id = created.upload_id().context("an upload id")?;
    let part = client.upload_part().bucket(&server.bucket).key("m").upload_id(id).part_number(1);
    let part = part.body(ByteStream::from(body.clone())).send().await?;
    let part =
        aws_sdk_s3::types::CompletedPart::builder().part_number(1).set_e_tag(part.e_tag().map(str::to_owned));
    let parts = aws_sdk_s3::types::CompletedMultipartUpload::builder().parts(part.build()).build();
    let complete = client.complete_multipart_upload().bucket(&server.bucket).key("m").upload_id(id);
    complete.multipart_upload(parts).send().await?;
    assert_eq!(get(&client, &server.bucket, "m").await?, body);
    let operations: Vec<String> = proxy.records().into_iter().map(|r| r.operation).collect();
    assert_eq!(operations, ["CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload", "GetObject"]);
    let record = &proxy.records()[1];
    assert!(record.request_bytes >= body.len() as u64, "{record:?}");
    Ok(())
}

#[test]
fn a_server_goes_with_its_owner() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let server = Server::start(Kind::VersitygwVersioning, dir.path())?;
    let address = server.endpoint.trim_start_matches("https://").to_owned();
    std::net::TcpStream::connect(&address)?;
    drop(server);
    assert!(std::net::TcpStream::connect(&address).is_err());
    Ok(())
}

#[test]
fn loops_go_with_their_owner() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let image = dir.path().join("image");
    std::fs::File::create(&image)?.set_len(1 << 20)?;
    let made = Loop::device(&image, 4096);
    if !is_root()? {
        assert!(made.is_err(), "without root it says so");
        return Ok(());
    }
    let device = made?;
    let name = device.path().file_name().context("a name")?.to_owned();
    let queue = Path::new("/sys/block").join(name);
    assert_eq!(std::fs::read_to_string(queue.join("queue/logical_block_size"))?.trim(), "4096");
    drop(device);
    assert!(!queue.join("loop/backing_file").exists());

    let tree = Loop::file_system("ext4", "64M")?;
    std::fs::write(tree.path().join("file"), b"x")?;
    let path = tree.path().to_owned();
    drop(tree);
    assert!(!path.exists());
    Ok(())
}

fn is_root() -> Result<bool> {
    Ok(std::fs::read_to_string("/proc/self/status")?
        .lines()
        .any(|line| line.starts_with("Uid:") && line.split_whitespace().nth(2) == Some("0")))
}

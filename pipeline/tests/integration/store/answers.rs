//! What the S3 store sends, and what it makes of answers: good, bad and none.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::{Duration, SystemTime};

use tradewind_pipeline::Error;
use tradewind_pipeline::store::s3::{S3Config, S3Store};
use tradewind_pipeline::store::{Body, Part, Store, StoreErrorKind as Kind, crc64};

use super::fake::{Answer, Fake, answer, refusal};
use super::kind;

const DATE: &str = "Sat, 21 Nov 2026 10:00:00 GMT";

fn body() -> Body {
    ["Some ", "", "bytes."].into_iter().map(|s| bytes::Bytes::from_static(s.as_bytes())).collect()
}

/// `Some bytes.` as the header has it.
fn sum() -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(crc64(body().slices()).to_be_bytes())
}

const SHA256: &str = "2b9d9ad463b6616664b48cc4c948a9347d3b6e84797d9354e57a6be277484213";

fn ok() -> Answer {
    answer(200, &[("etag", "\"tag\"")], "")
}

fn part(number: u32) -> Part {
    Part { number, size: 10, tag: "\"tag\"".into(), crc64: Some(7) }
}

#[tokio::test]
async fn over_tls_payloads_are_unsigned_and_carry_the_checksum() {
    let fake = Fake::start(true, |_| ok()).await;
    let store = fake.store().await;
    store.create("a/b", body()).await.unwrap();
    store.upload_part("a/b", "id", 2, 99, body()).await.unwrap();
    let asked = fake.asked();
    assert_eq!(asked[0].target, "/bucket/pre/fix/a/b?x-id=PutObject");
    assert_eq!(asked[0].header("if-none-match"), Some("*"));
    for request in &asked {
        assert_eq!(request.method, "PUT");
        assert_eq!(request.header("x-amz-content-sha256"), Some("UNSIGNED-PAYLOAD"));
        assert_eq!(request.header("x-amz-checksum-crc64nvme"), Some(sum().as_str()));
        assert_eq!(request.header("content-length"), Some("11"));
        assert_eq!(request.header("content-encoding"), None);
        assert_eq!(request.header("x-amz-trailer"), None);
        assert!(request.header("authorization").unwrap().contains("AWS4-HMAC-SHA256"));
        assert_eq!(request.body, "Some bytes.");
    }
}

#[tokio::test]
async fn without_tls_payloads_are_signed() {
    let fake = Fake::start(false, |_| ok()).await;
    fake.store().await.create("a", body()).await.unwrap();
    let asked = fake.asked();
    assert_eq!(asked[0].header("x-amz-content-sha256"), Some(SHA256));
    assert_eq!(asked[0].header("x-amz-checksum-crc64nvme"), Some(sum().as_str()));
    assert_eq!(asked[0].body, "Some bytes.");
}

#[tokio::test]
async fn finishing_states_condition_and_checksum() {
    let done = "<CompleteMultipartUploadResult><ETag>\"x\"</ETag></CompleteMultipartUploadResult>";
    let fake = Fake::start(true, move |_| answer(200, &[], done)).await;
    let store = fake.store().await;
    store.finish_upload("a", "id", &[part(1), part(2)]).await.unwrap();
    let asked = fake.asked();
    assert_eq!(asked[0].header("if-none-match"), Some("*"));
    assert_eq!(asked[0].header("x-amz-checksum-type"), Some("FULL_OBJECT"));
    assert!(asked[0].header("x-amz-checksum-crc64nvme").is_some());
    assert_eq!(asked[0].header("x-amz-mp-object-size"), Some("20"));
}

#[tokio::test]
async fn a_success_may_be_an_error() {
    let error = "<?xml version=\"1.0\"?>\n<Error><Code>InternalError</Code><Message>x</Message></Error>";
    let fake = Fake::start(true, move |_| answer(200, &[], error)).await;
    assert_eq!(kind(fake.store().await.finish_upload("a", "id", &[part(1)]).await), Kind::Transient);
    let fake = Fake::start(true, |_| answer(200, &[], "")).await;
    let outcome = fake.store().await.finish_upload("a", "id", &[part(1)]).await;
    assert_eq!(kind(outcome), Kind::Transient, "nothing said is nothing done");
}

#[tokio::test]
async fn answers_and_their_kinds() {
    let cases: [(u16, &str, Kind); 20] = [
        (412, "PreconditionFailed", Kind::AlreadyExists),
        (409, "ConditionalRequestConflict", Kind::Transient),
        (403, "AccessDenied", Kind::Denied),
        (403, "SignatureDoesNotMatch", Kind::Denied),
        (403, "RequestTimeTooSkewed", Kind::Denied),
        (400, "ExpiredToken", Kind::Denied),
        (404, "NoSuchBucket", Kind::NotFound),
        (404, "NoSuchUpload", Kind::NotFound),
        (500, "InternalError", Kind::Transient),
        (503, "SlowDown", Kind::Transient),
        (429, "TooManyRequests", Kind::Transient),
        (400, "RequestTimeout", Kind::Transient),
        (400, "BadDigest", Kind::Checksum),
        (400, "InvalidRequest", Kind::Other),
        (501, "NotImplemented", Kind::Unsupported),
        (405, "MethodNotAllowed", Kind::Unsupported),
        (507, "Whatever", Kind::Full),
        (507, "XMinioStorageFull", Kind::Full),
        (418, "Teapot", Kind::Other),
        (301, "PermanentRedirect", Kind::Other),
    ];
    for (status, code, want) in cases {
        let fake = Fake::start(false, move |_| refusal(status, code)).await;
        let error = fake.store().await.create("a", body()).await.unwrap_err();
        assert_eq!(error.kind, want, "{status} {code}: {error}");
        let text = error.to_string();
        assert!(text.starts_with("create s3://bucket/pre/fix/a: "), "{text}");
        assert!(text.contains(code) && text.contains("request R1"), "{text}");
        assert!(!text.contains("secret") && !text.contains("Signature="), "{text}");
    }
}

#[tokio::test]
async fn answers_that_are_not_s3s() {
    for (status, want) in
        [(502, Kind::Transient), (404, Kind::NotFound), (403, Kind::Denied), (200, Kind::Transient)]
    {
        let page = "<html><body>A proxy was here</body></html>";
        let fake = Fake::start(false, move |_| answer(status, &[("content-type", "text/html")], page)).await;
        let error = fake.store().await.finish_upload("a", "id", &[part(1)]).await.unwrap_err();
        assert_eq!(error.kind, want, "{status}: {error}");
    }
    let fake = Fake::start(false, |_| None).await;
    assert_eq!(kind(fake.store().await.create("a", body()).await), Kind::Transient);
}

#[tokio::test]
async fn the_wait_that_a_store_asks_for() {
    let fake = Fake::start(false, |_| answer(503, &[("retry-after", "7")], "")).await;
    let error = fake.store().await.stat("a").await.unwrap_err();
    assert_eq!((error.kind, error.retry_after), (Kind::Transient, Some(Duration::from_secs(7))));
}

#[tokio::test]
async fn requests_are_not_repeated_here() {
    let fake = Fake::start(false, |_| refusal(503, "SlowDown")).await;
    let store = fake.store().await;
    store.create("a", body()).await.unwrap_err();
    store.read_all("a", 10).await.unwrap_err();
    store.list("", None).await.unwrap_err();
    assert_eq!(fake.asked().len(), 3);
}

#[tokio::test]
async fn a_wrong_clock_is_named() {
    let fake = Fake::start(false, |_| {
        let body = "<Error><Code>RequestTimeTooSkewed</Code><Message>m</Message></Error>";
        answer(403, &[("date", DATE), ("content-type", "application/xml")], body)
    })
    .await;
    let error = fake.store().await.create("a", body()).await.unwrap_err();
    assert!(error.to_string().contains("the clock of this machine differs from the store's by "), "{error}");
}

#[tokio::test]
async fn another_region_is_named() {
    let fake = Fake::start(false, |_| {
        let body = "<Error><Code>AuthorizationHeaderMalformed</Code><Message>m</Message></Error>";
        answer(400, &[("x-amz-bucket-region", "eu-north-1")], body)
    })
    .await;
    let error = fake.store().await.create("a", body()).await.unwrap_err();
    assert!(error.to_string().contains("the bucket is in region eu-north-1"), "{error}");
}

#[tokio::test]
async fn checksums_are_compared() {
    let fake = Fake::start(true, |a| {
        let echo = if a.target.contains("good") { sum() } else { "AAAAAAAAAAA=".to_owned() };
        answer(200, &[("etag", "\"t\""), ("x-amz-checksum-crc64nvme", &echo)], "")
    })
    .await;
    let store = fake.store().await;
    store.create("good", body()).await.unwrap();
    assert_eq!(kind(store.create("bad", body()).await), Kind::Checksum);
    assert_eq!(kind(store.upload_part("bad", "id", 1, 0, body()).await), Kind::Checksum);
}

#[tokio::test]
async fn servers_without_the_checksum_get_signed_payloads() {
    let fake = Fake::start(true, |a| match a.header("x-amz-checksum-crc64nvme") {
        Some(_) => {
            let body =
                "<Error><Code>InvalidRequest</Code><Message>Unknown checksum algorithm</Message></Error>";
            answer(400, &[("content-type", "application/xml")], body)
        }
        None => ok(),
    })
    .await;
    let store = fake.store().await;
    store.create("a", body()).await.unwrap();
    store.create("b", body()).await.unwrap();
    let asked = fake.asked();
    let sent: Vec<_> = asked.iter().map(|a| a.header("x-amz-content-sha256").unwrap()).collect();
    assert_eq!(sent, ["UNSIGNED-PAYLOAD", SHA256, SHA256]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 6)]
async fn all_who_were_refused_with_the_checksum_try_without_it() {
    const AT_ONCE: usize = 3;
    // Nobody is refused before all have asked.
    let asked = std::sync::Barrier::new(AT_ONCE);
    let fake = Fake::start(true, move |a| match a.header("x-amz-checksum-crc64nvme") {
        Some(_) => {
            asked.wait();
            let body =
                "<Error><Code>InvalidRequest</Code><Message>Unknown checksum algorithm</Message></Error>";
            answer(400, &[("content-type", "application/xml")], body)
        }
        None => ok(),
    })
    .await;
    let store = fake.store().await;
    let (a, b, c) =
        tokio::join!(store.create("a", body()), store.create("b", body()), store.create("c", body()));
    a.and(b).and(c).unwrap();
    assert_eq!(fake.asked().len(), 2 * AT_ONCE);
}

#[tokio::test]
async fn reads_are_exact_or_fail() {
    // Too short, too long, whole instead of the range.
    let cases: [(u16, &str, &str, Kind); 4] = [
        (206, "bytes 0-9/100", "123456789", Kind::Transient),
        (206, "bytes 0-9/100", "1234567890A", Kind::Transient),
        (206, "bytes 0-4/5", "12345", Kind::OutOfRange),
        (416, "bytes */5", "", Kind::OutOfRange),
    ];
    for (status, range, text, want) in cases {
        let fake = Fake::start(false, move |_| answer(status, &[("content-range", range)], text)).await;
        assert_eq!(kind(fake.store().await.read("a", 0..10).await), want, "{status} {range} {text}");
    }
    let fake = Fake::start(false, |_| answer(200, &[], "1234567890")).await;
    let store = fake.store().await;
    assert_eq!(kind(store.read("a", 0..10).await), Kind::Unsupported);
    assert_eq!(kind(store.read_all("a", 9).await), Kind::OutOfRange);
    assert_eq!(store.read_all("a", 10).await.unwrap(), "1234567890");
}

#[tokio::test]
async fn listings_out_of_order_are_refused() {
    let page = |keys: &'static [&'static str]| {
        move |_: &super::fake::Asked| {
            let object = |k: &&str| {
                format!(
                    "<Contents><Key>{k}</Key><Size>1</Size><LastModified>2026-11-21T10:00:00Z</LastModified></Contents>"
                )
            };
            let all: String = keys.iter().map(object).collect();
            answer(
                200,
                &[],
                format!("<ListBucketResult><IsTruncated>false</IsTruncated>{all}</ListBucketResult>"),
            )
        }
    };
    let fake = Fake::start(false, page(&["pre/fix/b", "pre/fix/a"])).await;
    assert_eq!(kind(fake.store().await.list("", None).await), Kind::Unsupported);
    // Folders made by consoles and other people's names are none of ours.
    let fake =
        Fake::start(false, page(&["pre/fix/", "pre/fix/a", "pre/fix/b/", "pre/fix/c d", "pre/fix/e"])).await;
    let listing = fake.store().await.list("", None).await.unwrap();
    assert_eq!(listing.objects.iter().map(|o| o.key.as_str()).collect::<Vec<_>>(), ["a", "e"]);
}

#[tokio::test]
async fn pages_without_anything_of_ours_are_skipped() {
    let pages = AtomicU32::new(0);
    let fake = Fake::start(false, move |_| {
        let n = pages.fetch_add(1, Relaxed);
        let (key, more) = if n < 2 { ("no key!", true) } else { ("a", false) };
        answer(
            200,
            &[],
            format!(
                "<ListBucketResult><IsTruncated>{more}</IsTruncated><NextContinuationToken>t{n}</NextContinuationToken>\
                 <Contents><Key>pre/fix/{key}</Key><Size>1</Size><LastModified>2026-11-21T10:00:00Z</LastModified>\
                 </Contents></ListBucketResult>"
            ),
        )
    })
    .await;
    let listing = fake.store().await.list("", None).await.unwrap();
    assert_eq!((listing.objects.len(), listing.more), (1, false));
    assert!(fake.asked()[2].target.contains("continuation-token=t1"));
}

#[tokio::test]
async fn the_clock_comes_from_any_answer() {
    let want = SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_255_200);
    for status in [200, 403, 404] {
        let fake = Fake::start(false, move |_| answer(status, &[("date", DATE)], "")).await;
        assert_eq!(fake.store().await.now().await.unwrap(), want, "{status}");
    }
}

#[tokio::test]
async fn unreachable_is_told_from_trouble() {
    let config = |endpoint: &str, file: &std::path::Path| S3Config {
        bucket: "bucket".into(),
        endpoint: Some(endpoint.into()),
        credentials_file: Some(file.into()),
        ..S3Config::default()
    };
    let fake = Fake::start(true, |_| ok()).await;
    let file = fake.config().credentials_file.unwrap();
    let port = fake.endpoint.rsplit(':').next().unwrap();
    // Nobody listens; no such host; a certificate of an unknown authority; TLS that is none.
    let plain = Fake::start(false, |_| ok()).await;
    let not_tls = plain.endpoint.replace("http:", "https:");
    let unknown = format!("https://127.0.0.1:{port}");
    for endpoint in ["http://127.0.0.1:1", "https://no-such-host.invalid", &unknown, &not_tls] {
        let store = S3Store::connect(&config(endpoint, &file)).await.unwrap();
        let error = store.create("a", body()).await.unwrap_err();
        assert_eq!(error.kind, Kind::Unreachable, "{endpoint}: {error}");
    }
}

#[tokio::test]
async fn missing_credentials_are_named() {
    let fake = Fake::start(false, |_| ok()).await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("empty");
    std::fs::write(&file, "[other]\n").unwrap();
    let store = S3Store::connect(&S3Config { credentials_file: Some(file), ..fake.config() }).await.unwrap();
    let error = store.create("a", body()).await.unwrap_err();
    assert_eq!(error.kind, Kind::Denied, "{error}");
    let none = S3Config { credentials_file: Some(dir.path().join("none")), ..fake.config() };
    assert!(matches!(S3Store::connect(&none).await, Err(Error::Usage(_))));
}

/// A server that takes a body as fast as it comes shows how fast it came.
#[tokio::test(flavor = "multi_thread")]
async fn uploads_are_paced_on_the_wire() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tradewind_pipeline::limits;
    use tradewind_pipeline::store::rate::Rate;

    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let sizes = tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        let (mut buffer, mut total, mut tenths) = (vec![0; 1 << 20], 0, [0usize; 40]);
        let start = std::time::Instant::now();
        while total < 1 << 20 {
            let n = socket.read(&mut buffer).await.unwrap();
            assert!(n > 0, "closed early");
            total += n;
            tenths[usize::try_from(start.elapsed().as_millis() / 100).unwrap().min(39)] += n;
        }
        socket.write_all(b"HTTP/1.1 200 OK\r\netag: \"x\"\r\ncontent-length: 0\r\n\r\n").await.unwrap();
        tenths
    });
    let fake = Fake::start(false, |_| ok()).await;
    let config = S3Config { endpoint: Some(format!("http://127.0.0.1:{port}")), ..fake.config() };
    let store = Arc::new(S3Store::connect(&config).await.unwrap());
    let store = Rate::new(store, limits::Rate::new(1 << 20), Arc::default());
    let start = std::time::Instant::now();
    store.create("a", vec![7; 1 << 20].into()).await.unwrap();
    assert!(start.elapsed() > Duration::from_millis(850), "{:?}", start.elapsed());
    let tenths = sizes.await.unwrap();
    let busy = tenths.iter().filter(|n| **n > 0).count();
    assert!(busy >= 6, "1 MiB at 1 MiB/s arrived in {busy} tenths of a second: {tenths:?}");
}

//! What a cluster's storage location may ask for: whose credentials, which encryption and tags, which certificates.

use tradewind_pipeline::Error;
use tradewind_pipeline::store::s3::{CustomerKey, Encryption, S3Config, S3Store};
use tradewind_pipeline::store::{Part, Store, StoreErrorKind as Kind};

use super::fake::{Answer, Asked, Fake, answer};
use super::kind;

const SSE: &str = "x-amz-server-side-encryption";

/// Does every request about an object's contents once, and returns them by the words of S3.
async fn all_requests(fake: &Fake, config: S3Config) -> Vec<(&'static str, Asked)> {
    let store = S3Store::connect(&config).await.unwrap();
    store.create("a", vec![1; 10].into()).await.unwrap();
    let upload = store.begin_upload("b").await.unwrap();
    let part = store.upload_part("b", &upload, 1, 0, vec![1; 10].into()).await.unwrap();
    store.finish_upload("b", &upload, &[Part { crc64: None, ..part }]).await.unwrap();
    assert_eq!(store.read_all("a", 100).await.unwrap().len(), 10);
    assert_eq!(store.read("a", 0..10).await.unwrap().len(), 10);
    assert_eq!(store.stat("a").await.unwrap().size, 10);
    store.delete("a").await.unwrap();
    assert!(store.list("", None).await.unwrap().objects.is_empty());
    let names = ["put", "begin", "part", "finish", "get", "get", "head", "delete", "list"];
    let asked = fake.asked();
    assert_eq!(asked.len(), names.len());
    names.into_iter().zip(asked).collect()
}

/// Answers each of these requests with what it needs.
fn respond(asked: &Asked) -> Answer {
    let modified = ("last-modified", "Sat, 21 Nov 2026 10:00:00 GMT");
    match (asked.method.as_str(), &asked.target) {
        ("POST", target) if target.contains("uploads") => {
            let begun =
                "<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>";
            answer(200, &[], begun)
        }
        ("POST", _) => {
            let done = "<CompleteMultipartUploadResult><ETag>\"x\"</ETag></CompleteMultipartUploadResult>";
            answer(200, &[], done)
        }
        ("GET", target) if target.contains("list-type") => {
            answer(200, &[], "<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>")
        }
        ("GET", _) if asked.header("range").is_some() => {
            answer(206, &[("content-range", "bytes 0-9/10")], vec![1; 10])
        }
        ("GET", _) => answer(200, &[], vec![1; 10]),
        ("HEAD", _) => answer(200, &[("content-length", "10"), modified], ""),
        ("DELETE", _) => answer(204, &[], ""),
        _ => answer(200, &[("etag", "\"tag\"")], ""),
    }
}

#[tokio::test]
async fn objects_are_encrypted_by_the_store_as_asked() {
    let kms_id = format!("{SSE}-aws-kms-key-id");
    let fake = Fake::start(true, respond).await;
    for (encryption, value, id) in [
        (Encryption::Unset, None, None),
        (Encryption::Aes256, Some("AES256"), None),
        (Encryption::Kms(None), Some("aws:kms"), None),
        (Encryption::Kms(Some("arn:k/1".into())), Some("aws:kms"), Some("arn:k/1")),
        (Encryption::KmsDsse(Some("k".into())), Some("aws:kms:dsse"), Some("k")),
    ] {
        for (name, asked) in all_requests(&fake, S3Config { encryption, ..fake.config() }).await {
            let makes = matches!(name, "put" | "begin");
            assert_eq!(asked.header(SSE), value.filter(|_| makes), "{name}");
            assert_eq!(asked.header(&kms_id), id.filter(|_| makes), "{name}");
            let signed = asked.header("authorization").unwrap().contains(SSE);
            assert_eq!(signed, makes && value.is_some(), "{name}");
        }
    }
}

#[tokio::test]
async fn a_customers_key_goes_with_everything_about_contents() {
    let fake = Fake::start(true, respond).await;
    let encryption = Encryption::Customer(CustomerKey::new(&[b'A'; 32]).unwrap());
    let config = S3Config { encryption, ..fake.config() };
    for (name, asked) in all_requests(&fake, config.clone()).await {
        let wanted = !matches!(name, "delete" | "list");
        for (header, value) in [
            ("algorithm", "AES256"),
            ("key", "QUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUE="),
            ("key-md5", "UhbdzFjo2t5SVgded/ZC2g=="),
        ] {
            let found = asked.header(&format!("{SSE}-customer-{header}"));
            assert_eq!(found, wanted.then_some(value), "{name} {header}");
        }
        assert_eq!(asked.header(SSE), None, "{name}");
    }
    let plain = Fake::start(false, respond).await;
    let config = S3Config { endpoint: Some(plain.endpoint.clone()), ca_file: None, ..config };
    assert!(matches!(S3Store::connect(&config).await, Err(Error::Usage(_))), "not for everyone to see");
}

#[tokio::test]
async fn objects_are_tagged_when_they_are_made() {
    let fake = Fake::start(false, respond).await;
    let config = S3Config { tagging: Some("owner=me&kind=b%20c".into()), ..fake.config() };
    for (name, asked) in all_requests(&fake, config).await {
        let makes = matches!(name, "put" | "begin");
        assert_eq!(asked.header("x-amz-tagging"), makes.then_some("owner=me&kind=b%20c"), "{name}");
    }
}

#[tokio::test]
async fn credentials_are_those_of_the_profile() {
    let fake = Fake::start(false, respond).await;
    let file = fake.config().credentials_file.unwrap();
    let mut secrets = std::fs::read_to_string(&file).unwrap();
    secrets += "[other]\naws_access_key_id = OTHER\naws_secret_access_key = secret\n";
    std::fs::write(&file, secrets).unwrap();
    for (profile, id) in [(None, "AKID"), (Some("default"), "AKID"), (Some("other"), "OTHER")] {
        let config = S3Config { profile: profile.map(str::to_owned), ..fake.config() };
        S3Store::connect(&config).await.unwrap().create("a", vec![1].into()).await.unwrap();
        let asked = fake.asked();
        assert!(
            asked[0].header("authorization").unwrap().contains(&format!("Credential={id}/")),
            "{profile:?}"
        );
    }
    let config = S3Config { profile: Some("nobody".into()), ..fake.config() };
    let store = S3Store::connect(&config).await.unwrap();
    assert_eq!(kind(store.create("a", vec![1].into()).await), Kind::Denied);
}

#[tokio::test]
async fn a_certificate_is_believed_unseen_on_request() {
    let fake = Fake::start(true, respond).await;
    // Of an unknown authority, and for another name.
    let elsewhere = fake.endpoint.replace("127.0.0.1", "localhost");
    for endpoint in [&fake.endpoint, &elsewhere] {
        let config = S3Config { endpoint: Some(endpoint.clone()), ca_file: None, ..fake.config() };
        let store = S3Store::connect(&config).await.unwrap();
        assert_eq!(kind(store.stat("a").await), Kind::Unreachable, "{endpoint}");
        let config = S3Config { insecure_skip_tls_verify: true, ..config };
        for (name, asked) in all_requests(&fake, config).await {
            let sent = asked.header("x-amz-content-sha256");
            assert!(!matches!(name, "put" | "part") || sent == Some("UNSIGNED-PAYLOAD"), "{name}");
        }
    }
    for endpoint in ["https://127.0.0.1:1", "https://no-such-host.invalid"] {
        let config =
            S3Config { endpoint: Some(endpoint.into()), insecure_skip_tls_verify: true, ..fake.config() };
        let error = S3Store::connect(&config).await.unwrap().stat("a").await.unwrap_err();
        assert_eq!(error.kind, Kind::Unreachable, "{endpoint}: {error}");
    }
}

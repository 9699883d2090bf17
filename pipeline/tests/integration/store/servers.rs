//! The S3 store against real servers, one of them behind TLS with a private CA.
//!
//! `tests/servers/servers.sh` starts what `tests/setup.sh servers` has built. Without that build the tests say
//! loudly that they were skipped; with `TRADEWIND_TEST_S3=required` they fail.

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use tradewind_pipeline::limits;
use tradewind_pipeline::progress::Progress;
use tradewind_pipeline::store::probe::probe;
use tradewind_pipeline::store::rate::Rate;
use tradewind_pipeline::store::retry::{Policy, Retry};
use tradewind_pipeline::store::s3::{S3Config, S3Store};
use tradewind_pipeline::store::{OpenUpload, Store, StoreErrorKind};

use super::{conforms_except, kind};

/// A running server, which stops when this is dropped or when the test is killed.
struct Server {
    script: Child,
    told: HashMap<String, String>,
    dir: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        // The script stops the server when its input ends.
        drop(self.script.stdin.take());
        let _ = self.script.wait();
    }
}

impl Server {
    /// Starts `kind`; `None` when it is not built and need not be.
    fn start(kind: &str) -> Option<Self> {
        let cache = std::env::var_os("XDG_CACHE_HOME")
            .map(PathBuf::from)
            .or_else(|| Some(std::env::home_dir()?.join(".cache")))
            .map(|c| c.join("tradewind"));
        let built = cache.and_then(|c| std::fs::read_dir(c.join("bin")).ok()).is_some_and(|entries| {
            entries.flatten().any(|e| e.file_name().to_string_lossy().starts_with(&format!("{kind}-")))
        });
        if !built {
            let required = std::env::var("TRADEWIND_TEST_S3").is_ok_and(|v| v == "required");
            assert!(!required, "{kind} is not built: run tests/setup.sh servers");
            eprintln!("SKIPPED: {kind} is not built; run tests/setup.sh servers to test against it");
            return None;
        }
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let mut script = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/servers/servers.sh"))
            .args(["serve", kind])
            .arg(dir.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut told = HashMap::new();
        for line in BufReader::new(script.stdout.take().unwrap()).lines() {
            let line = line.unwrap();
            let (name, value) = line.split_once('=').unwrap();
            told.insert(name.to_owned(), value.trim_matches('\'').to_owned());
            if name == "AWS_REGION" {
                break;
            }
        }
        let server = Self { script, told, dir };
        assert!(server.told.contains_key("AWS_REGION"), "{kind} did not start; what it wrote says why");
        Some(server)
    }

    fn config(&self, prefix: &str) -> S3Config {
        let told = |name: &str| self.told[name].clone();
        let credentials_file = self.dir.path().join("credentials");
        let secrets = format!(
            "[default]\naws_access_key_id = {}\naws_secret_access_key = {}\n",
            told("AWS_ACCESS_KEY_ID"),
            told("AWS_SECRET_ACCESS_KEY")
        );
        std::fs::write(&credentials_file, secrets).unwrap();
        S3Config {
            bucket: told("S3_BUCKET"),
            prefix: prefix.into(),
            endpoint: Some(told("S3_ENDPOINT")),
            region: Some(told("AWS_REGION")),
            ca_file: Some(told("S3_CA_FILE")).filter(|f| !f.is_empty()).map(PathBuf::from),
            credentials_file: Some(credentials_file),
            ..S3Config::default()
        }
    }

    async fn store(&self, prefix: &str) -> S3Store {
        S3Store::connect(&self.config(prefix)).await.unwrap()
    }
}

/// `exempt`: checks that this server is known to fail; the probe must find it out.
async fn everything(server: &Server, exempt: &[&str]) {
    conforms_except(&server.store("pre/fix").await, exempt).await;
    conforms_except(&server.store("").await, exempt).await;

    // As a run has it.
    let progress = Arc::new(Progress::default());
    let rate = Rate::new(Arc::new(server.store("run").await), limits::Rate::unlimited(), progress.clone());
    // Few attempts: an internal error that comes every time would be tried for minutes.
    let policy = Policy { attempts: 4, ..Policy::default() };
    conforms_except(&Retry::new(Arc::new(rate), policy, progress), exempt).await;

    let found = probe(&server.store("probed").await).await.unwrap();
    for (name, finding) in found.findings() {
        // A server that looks first and writes then may win every race of the probe, though seldom.
        let lucky = name == "one winner" && !exempt.is_empty();
        assert!(finding.works || lucky, "{name}: {}", finding.reason);
    }
    assert!(found.create_if_absent() || !exempt.is_empty());

    // Mistakes of the user.
    let config = server.config("x");
    std::fs::write(
        config.credentials_file.as_ref().unwrap(),
        "[default]\naws_access_key_id = tradewind-test\naws_secret_access_key = wrong\n",
    )
    .unwrap();
    let store = S3Store::connect(&config).await.unwrap();
    assert_eq!(kind(store.create("a", vec![1].into()).await), StoreErrorKind::Denied);
    assert_eq!(kind(store.stat("a").await), StoreErrorKind::Denied);
}

#[tokio::test(flavor = "multi_thread")]
async fn versitygw_over_tls() {
    let Some(server) = Server::start("versitygw") else { return };
    assert!(server.told["S3_ENDPOINT"].starts_with("https://") && !server.told["S3_CA_FILE"].is_empty());
    let trusting = S3Config { ca_file: None, ..server.config("x") };
    let store = S3Store::connect(&trusting).await.unwrap();
    assert_eq!(kind(store.stat("a").await), StoreErrorKind::Unreachable, "only with its CA");
    let wrong = S3Config { bucket: "no-such-bucket".into(), ..server.config("x") };
    let error = S3Store::connect(&wrong).await.unwrap().create("a", vec![1].into()).await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::NotFound, "{error}");
    assert!(error.message.contains("bucket does not exist"), "{error}");
    // It tells what was begun, so that what an interrupted run has left can be cleared.
    let store = server.store("open").await;
    let upload = store.begin_upload("packs/x").await.unwrap();
    let open = OpenUpload { key: "packs/x".into(), upload };
    assert_eq!(store.open_uploads("packs/").await.unwrap(), std::slice::from_ref(&open));
    assert_eq!(store.open_uploads("index/").await.unwrap(), []);
    store.abort_upload(&open.key, &open.upload).await.unwrap();
    assert_eq!(store.open_uploads("packs/").await.unwrap(), []);
    // As a cluster's storage location may ask for it.
    let asked = S3Config {
        insecure_skip_tls_verify: true,
        tagging: Some("owner=tradewind&kind=a%20b".into()),
        profile: Some("default".into()),
        ..trusting
    };
    conforms_except(&S3Store::connect(&S3Config { prefix: "asked".into(), ..asked }).await.unwrap(), &[])
        .await;
    everything(&server, &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn s3s_fs() {
    let Some(server) = Server::start("s3s-fs") else { return };
    // It looks whether the key exists and writes then; a key that is a folder on its disk is an internal error;
    // uploads that it does not know (any more) are denied.
    let exempt = [
        "objects::create_has_one_winner",
        "objects::a_folder_is_no_object",
        "uploads::finish_has_one_winner",
        "uploads::aborting_forgets",
        "uploads::unknown_uploads_are_refused",
    ];
    everything(&server, &exempt).await;
}

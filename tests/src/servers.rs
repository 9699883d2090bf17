//! The real S3 servers of the tests, by way of `tests/servers/servers.sh`: started for one test, stopped with it,
//! even if the test is killed (the script stops the server when its standard input ends).

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

/// Which server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `versitygw` behind TLS with a CA of its own.
    Versitygw,
    /// `versitygw` without TLS.
    VersitygwPlain,
    /// `versitygw` behind TLS, able to keep versions.
    VersitygwVersioning,
    /// `s3s-fs`, plain HTTP.
    S3sFs,
}

impl Kind {
    fn arguments(self) -> (&'static str, &'static [&'static str]) {
        match self {
            Self::Versitygw => ("versitygw", &[]),
            Self::VersitygwPlain => ("versitygw", &["--plain"]),
            Self::VersitygwVersioning => ("versitygw", &["--versioning"]),
            Self::S3sFs => ("s3s-fs", &[]),
        }
    }
}

/// A running server. It stops when this is dropped.
#[derive(Debug)]
pub struct Server {
    script: Child,
    /// For instance `https://127.0.0.1:40001`.
    pub endpoint: String,
    /// A bucket that exists.
    pub bucket: String,
    /// The CA of the server's certificate, if it speaks TLS.
    pub ca_file: Option<PathBuf>,
    /// Access key id.
    pub access_key: String,
    /// Secret access key.
    pub secret_key: String,
    /// Region.
    pub region: String,
    /// The folder that holds the buckets as folders and the objects as files.
    pub data: PathBuf,
}

impl Server {
    /// Starts a server that keeps everything in `dir`, and waits until it answers.
    pub fn start(kind: Kind, dir: &Path) -> Result<Self> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("servers/servers.sh");
        let (name, options) = kind.arguments();
        let mut child = Command::new(&script)
            .arg("serve")
            .arg(name)
            .arg(dir)
            .args(options)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("running {}", script.display()))?;
        let output = child.stdout.take().context("the script's output")?;
        let mut said = HashMap::new();
        for line in BufReader::new(output).lines() {
            let line = line?;
            let (name, value) = line.split_once('=').with_context(|| format!("servers.sh said '{line}'"))?;
            said.insert(name.to_owned(), value.trim_matches('\'').to_owned());
            if name == "AWS_REGION" {
                return Self::told(child, said); // the last line of its answer
            }
        }
        let status = child.wait()?;
        bail!("{name} did not start ({status}); what servers.sh wrote to standard error says why")
    }

    fn told(script: Child, mut said: HashMap<String, String>) -> Result<Self> {
        let mut take =
            |name: &str| said.remove(name).with_context(|| format!("servers.sh did not say {name}"));
        let ca_file = take("S3_CA_FILE")?;
        let server = Self {
            endpoint: take("S3_ENDPOINT")?,
            bucket: take("S3_BUCKET")?,
            ca_file: (!ca_file.is_empty()).then(|| PathBuf::from(ca_file)),
            access_key: take("AWS_ACCESS_KEY_ID")?,
            secret_key: take("AWS_SECRET_ACCESS_KEY")?,
            region: take("AWS_REGION")?,
            data: take("S3_DATA")?.into(),
            script,
        };
        ensure!(server.endpoint.starts_with("http"), "servers.sh said endpoint '{}'", server.endpoint);
        Ok(server)
    }

    /// What a process needs in its environment to be let in.
    #[must_use]
    pub fn environment(&self) -> [(&'static str, &str); 3] {
        [
            ("AWS_ACCESS_KEY_ID", &self.access_key),
            ("AWS_SECRET_ACCESS_KEY", &self.secret_key),
            ("AWS_REGION", &self.region),
        ]
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.script.stdin.take()); // it stops the server and ends
        let _ = self.script.wait();
    }
}

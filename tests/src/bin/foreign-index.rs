//! `foreign-index RECORDS`: adds an index of chunks that no volume here has, as if others had been backed up, to the
//! repository of `TRADEWIND_REPOSITORY`, opened with `TRADEWIND_KEY_FILE`. Where it is in a bucket: `S3_ENDPOINT`,
//! `S3_CA_FILE` and `AWS_...`, as tests/servers/servers.sh prints them.

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result};
use tradewind_pipeline::index::foreign;
use tradewind_pipeline::repository::Repository;
use tradewind_pipeline::seal::Secret;
use tradewind_pipeline::store::url::{self, Options};

fn set(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn main() -> Result<()> {
    let records: u64 = std::env::args().nth(1).context("usage: foreign-index RECORDS")?.parse()?;
    let location = set("TRADEWIND_REPOSITORY").context("TRADEWIND_REPOSITORY is not set")?;
    let key = std::fs::read(set("TRADEWIND_KEY_FILE").context("TRADEWIND_KEY_FILE is not set")?)?;
    let options = Options {
        path_style: true,
        endpoint: set("S3_ENDPOINT"),
        region: set("AWS_REGION"),
        ca_file: set("S3_CA_FILE").map(PathBuf::from),
        ..Options::default()
    };
    let segments = tokio::runtime::Runtime::new()?.block_on(async {
        let store = url::open(&location, &options).await?;
        let (repository, _) = Repository::open(store, &Secret::KeyFile(key.into())).await?;
        foreign::write(&**repository.store(), repository.master(), repository.epoch(), 0, records).await
    })?;
    writeln!(std::io::stdout(), "{records} records in {segments} segments")?;
    Ok(())
}

//! Measures the index against any number of chunks of other volumes.
//!
//! ```text
//! foreign_index write STORE RECORDS        writes made-up segments to the directory STORE
//! foreign_index open STORE CACHE FILTER    opens the index with FILTER MiB of filters, and looks chunks up
//! ```
//! The key is fixed: STORE is no repository. `index::foreign::write` does the same to a real one.
#![allow(clippy::print_stdout, reason = "it prints what it measures")]

use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use tradewind_pipeline::index::{Index, IndexConfig, foreign};
use tradewind_pipeline::seal::MasterKey;
use tradewind_pipeline::store::local::LocalStore;

/// Look-ups of each kind.
const LOOKUPS: u64 = 200_000;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build()?;
    match args[..] {
        ["write", store, records] => runtime.block_on(write(store, records.parse()?)),
        ["open", store, cache, filter] => runtime.block_on(open(store, cache, filter.parse()?)),
        _ => Err("usage: foreign_index write STORE RECORDS | open STORE CACHE FILTER".into()),
    }
}

fn master() -> MasterKey {
    MasterKey::from_bytes([0; 32])
}

async fn write(store: &str, records: u64) -> Result<(), Box<dyn Error>> {
    let started = Instant::now();
    let segments = foreign::write(&LocalStore::new(store)?, &master(), 0, 0, records).await?;
    println!("{records} records in {segments} segments: {:.1?}", started.elapsed());
    Ok(())
}

async fn open(store: &str, cache: &str, filter: usize) -> Result<(), Box<dyn Error>> {
    let config = IndexConfig {
        cache_dir: Some(PathBuf::from(cache)),
        filter_bytes: filter << 20,
        ..IndexConfig::default()
    };
    let started = Instant::now();
    let store = Arc::new(LocalStore::new(store)?);
    let (index, report) = Index::open(store, &master(), 0, &[0; 16], None, &[], config).await?;
    println!("opened in {:.1?}: {report:?}", started.elapsed());
    let records = index.cache_stats().records;
    // Known chunks in no order, then unknown ones.
    for (what, first, step) in [("known", 0, 982_451_653), ("unknown", records, 1)] {
        let before = index.cache_stats().page_reads;
        let started = Instant::now();
        let mut found = 0;
        for i in 0..LOOKUPS {
            let n = if first == 0 { i * step % records.max(1) } else { first + i };
            let (kind, id, at) = foreign::chunk(n);
            match index.find(kind, &id) {
                Some(there) if there == at => found += 1,
                Some(_) => return Err("invented a location".into()),
                None => {}
            }
        }
        let each = started.elapsed() / u32::try_from(LOOKUPS)?;
        let pages = index.cache_stats().page_reads - before;
        println!(
            "{what}: {found} of {LOOKUPS} found, {each:.1?} and {:.2} pages each",
            pages as f64 / LOOKUPS as f64
        );
    }
    println!("{:?}", index.cache_stats());
    Ok(())
}

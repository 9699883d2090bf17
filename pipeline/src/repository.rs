//! The repository: what is at a location, whether this program may use it, and the key to it.
//!
//! ```text
//! config                                       what it is; written last by init           config.rs
//! keys/<slot>                                  the master key, wrapped                    slots.rs, keyring.rs
//! packs/<2 hex>/<random>-<session>             chunks and pages                           ../pack.rs
//! index/...                                    where chunks are                           ../index.rs
//! snapshots/<volume>/<session>[.forgotten]     commits                                    ../manifest.rs
//! sessions/<volume>/<session>/<n>-<what>       who is writing, and how far it got         ../session.rs
//! gc/<generation>/...                          what must not be used any more             ../gc.rs
//! ```
//! Objects are created once and never changed. A [`Repository`] is a store together with an opened master key.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use crate::error::{Error, Result};
use crate::hash::Hasher;
use crate::manifest::{VolumeKey, VolumeName};
use crate::seal::MasterKey;
use crate::seal::object::{self, ObjectClass};
use crate::store::{Store, StoreErrorKind};

pub mod config;
mod keyring;
mod open;
pub(crate) mod reading;
pub mod slots;
#[cfg(test)]
pub(crate) mod test_store;
#[cfg(test)]
mod tests;

pub use config::{CdcSizes, Config, Operation, Parameters, RepositoryId};
pub(crate) use open::millis;
pub use open::{InitOptions, OpenReport};
pub use slots::{BadSlot, SlotInfo, SlotKind};

/// Largest small sealed object (manifest, session record, head of a generation) that is read, in bytes.
pub const MAX_RECORD: u64 = 16 << 20;

/// An open repository. Shared by everything that reads or writes it; behind an [`Arc`].
pub struct Repository {
    store: Arc<dyn Store>,
    config: Config,
    master: MasterKey,
    hasher: Hasher,
    slot: String,
}

impl fmt::Debug for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Repository")
            .field("location", &self.store.location())
            .field("id", &self.config.repository)
            .finish_non_exhaustive()
    }
}

impl Repository {
    fn new(store: Arc<dyn Store>, config: Config, master: MasterKey, slot: String) -> Self {
        let hasher = Hasher::new(&master);
        Self { store, config, master, hasher, slot }
    }

    /// The store below.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// Where it is, for messages. No secrets.
    pub fn location(&self) -> String {
        self.store.location()
    }

    /// Identity of the repository, the same wherever it is copied.
    pub fn id(&self) -> RepositoryId {
        self.config.repository
    }

    /// Key epoch of new packs and objects.
    pub fn epoch(&self) -> u32 {
        self.config.epoch
    }

    /// The verified configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The master key.
    pub fn master(&self) -> &MasterKey {
        &self.master
    }

    /// Computes ids. Clone it for each worker.
    pub fn hasher(&self) -> &Hasher {
        &self.hasher
    }

    /// Name of the key slot that opened the repository.
    pub fn slot(&self) -> &str {
        &self.slot
    }

    /// True when the store has no create-if-absent: one writer at a time, no garbage collection beside it.
    pub fn single_writer(&self) -> bool {
        self.config.single_writer
    }

    /// Fails when this program must not do `operation` here.
    ///
    /// # Errors
    /// [`Error::Repository`] naming the missing format level or feature.
    pub fn allow(&self, operation: Operation) -> Result<()> {
        self.config.allow(&self.location(), operation)
    }

    /// The name under which a volume's objects are stored: keyed, so that a name cannot be guessed from it.
    pub fn volume_key(&self, name: &VolumeName) -> VolumeKey {
        let mut out = [0; 16];
        self.master.derive_into("tradewind v1 volume name", name.as_bytes(), &mut out);
        VolumeKey(out)
    }

    /// The store's clock, in milliseconds since the Unix epoch.
    ///
    /// # Errors
    /// Store errors.
    pub async fn now_ms(&self) -> Result<u64> {
        Ok(millis(self.store.now().await?))
    }

    /// Seals `plain` as the object `key`, without storing it.
    ///
    /// # Errors
    /// As [`object::seal`].
    pub fn seal(&self, class: ObjectClass, key: &str, plain: &[u8]) -> Result<Bytes> {
        object::seal(&self.master, self.config.epoch, class, key, plain).map(Bytes::from)
    }

    /// Seals `plain` and creates the object `key` with it.
    ///
    /// # Errors
    /// [`Error::Conflict`] when the key is taken by something else; store errors.
    pub async fn put(&self, class: ObjectClass, key: &str, plain: &[u8]) -> Result<()> {
        let sealed = self.seal(class, key, plain)?;
        match create_once(&*self.store, key, sealed).await? {
            Created::Yes => Ok(()),
            Created::Taken => Err(Error::Conflict(format!("{key} was already written by another run"))),
        }
    }

    /// Reads and opens the object `key` of at most `limit` stored bytes. `None` when it does not exist.
    ///
    /// # Errors
    /// [`Error::Damaged`] naming `key`; store errors.
    pub async fn get(&self, class: ObjectClass, key: &str, limit: u64) -> Result<Option<Vec<u8>>> {
        match self.store.read_all(key, limit).await {
            Ok(stored) => object::open(&self.master, class, key, &stored).map(Some),
            Err(e) if e.kind == StoreErrorKind::NotFound => Ok(None),
            // No writer makes one of that size: the object is at fault, not the store, and others can be read.
            Err(e) if e.kind == StoreErrorKind::OutOfRange => Err(Error::damaged(key, e.message)),
            Err(e) => Err(e.into()),
        }
    }
}

/// What came of a creation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Created {
    /// The object holds our bytes.
    Yes,
    /// Somebody else's object is there.
    Taken,
}

/// Creates `key`, and finds out what happened when the answer got lost: a store that did create it, and whose answer
/// did not arrive, says "exists" to the next try. Bytes decide; sealed ones are never equal by chance.
pub(crate) async fn create_once(store: &dyn Store, key: &str, bytes: Bytes) -> Result<Created> {
    let Err(error) = store.create(key, bytes.clone().into()).await else { return Ok(Created::Yes) };
    let exists = error.kind == StoreErrorKind::AlreadyExists;
    if !exists && !error.is_transient() {
        return Err(error.into());
    }
    let len = bytes.len() as u64;
    let found = match store.stat(key).await {
        Ok(info) if info.size == len => store.read_all(key, len).await.map(Some),
        Ok(_) => Ok(None),
        Err(e) => Err(e),
    };
    match found {
        Ok(Some(found)) if found == bytes => Ok(Created::Yes),
        Ok(_) => Ok(Created::Taken),
        // We know no more than before: a creation that failed, or a key that exists and cannot be read.
        Err(e) if exists => Err(e.into()),
        Err(_) => Err(error.into()),
    }
}

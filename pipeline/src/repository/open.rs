//! Making a repository and opening one.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;

use super::config::{
    self, CONFIG_KEY, Config, FORMAT_LEVEL, MAX_CONFIG, Operation, Parameters, RepositoryId,
};
use super::slots::{BadSlot, KEYS_PREFIX, MAX_SLOT, MAX_SLOTS, Slot, SlotKind, slot_name};
use super::{Created, Repository, create_once};
use crate::error::{Error, Result};
use crate::seal::{MasterKey, Secret};
use crate::store::probe::{Finding, probe};
use crate::store::{ObjectInfo, Store, StoreErrorKind};

/// What a new repository is like.
#[derive(Debug, Clone)]
pub struct InitOptions {
    /// Go on although the store does not honour create-if-absent; recorded for ever.
    pub accept_single_writer: bool,
    /// Defaults of its snapshots.
    pub parameters: Parameters,
    /// What to call the first key slot.
    pub label: String,
    /// Name and version of the program, for `config`.
    pub tool: String,
}

impl Default for InitOptions {
    fn default() -> Self {
        Self {
            accept_single_writer: false,
            parameters: Parameters::default(),
            label: String::new(),
            tool: crate::TOOL.to_owned(),
        }
    }
}

/// What was noticed while opening a repository. None of it kept it from opening.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenReport {
    /// Name of the slot that opened.
    pub slot: String,
    /// Slots that are damaged, of a later version or of another repository. To be shown to the user.
    pub bad_slots: Vec<BadSlot>,
    /// Operations other than reading that this program must not do here, and why.
    pub barred: Vec<(Operation, String)>,
}

impl Repository {
    /// Makes a repository at `store`, protected by `secret`. `config` is written last: until then there is none,
    /// and a run that died before leaves nothing that matters.
    ///
    /// # Errors
    /// [`Error::Usage`]: an unacceptable secret or parameter. [`Error::Repository`]: the location is taken, or the
    /// store cannot keep concurrent writers apart and [`InitOptions::accept_single_writer`] is not set.
    pub async fn init(store: Arc<dyn Store>, secret: &Secret, options: InitOptions) -> Result<Self> {
        secret.check_for_new_slot()?;
        options.parameters.check().map_err(Error::Usage)?;
        refuse_occupied(&*store).await?;
        let can = probe(&*store).await?;
        let findings = |wanted: &[&Finding]| {
            let failed: Vec<&str> = wanted.iter().filter(|f| !f.works).map(|f| f.reason.as_str()).collect();
            failed.join("; ")
        };
        let refuse = |what, hint| Err(Error::Repository { location: store.location(), what, hint });
        if !can.usable() {
            let why =
                findings(&[&can.multipart, &can.read_after_write, &can.list_after_write, &can.ranged_reads]);
            return refuse(format!("this store cannot hold a repository: {why}"), Some("use another store"));
        }
        let single_writer = !can.create_if_absent();
        if single_writer && !options.accept_single_writer {
            let why = findings(&[&can.conditional_create, &can.conditional_finish, &can.one_winner]);
            return refuse(
                format!(
                    "this store does not keep the promise to create an object only if it is absent ({why}); \
                     without it two writers can destroy each other's snapshots"
                ),
                Some(
                    "use another store or a newer server, or accept one writer at a time with --single-writer",
                ),
            );
        }
        let mut id = [0; 16];
        getrandom::fill(&mut id).map_err(|e| Error::Internal(format!("no randomness: {e}")))?;
        let master = MasterKey::generate()?;
        let config = Config {
            min_level: [FORMAT_LEVEL; 3],
            repository: RepositoryId(id),
            epoch: 1,
            parameters: options.parameters,
            features: std::collections::BTreeMap::new(),
            single_writer,
            created_ms: millis(store.now().await?),
            tool: options.tool,
        };
        let mut repository = Self::new(store, config, master, String::new());
        repository.slot = repository.add_key(secret, &options.label).await?.name;
        let bytes = Bytes::from(repository.config.encode(&repository.master)?);
        match create_once(&*repository.store, CONFIG_KEY, bytes).await? {
            Created::Yes => Ok(repository),
            Created::Taken => {
                // Another init was faster. Our slot opens nothing of theirs; without the right to delete it stays,
                // and is reported as foreign.
                let _ = repository.store.delete(&super::slots::slot_key(&repository.slot)).await;
                Err(taken(&*repository.store))
            }
        }
    }

    /// Opens the repository at `store`.
    ///
    /// # Errors
    /// [`Error::Repository`]: there is none, it is not ours, or it is too new. [`Error::WrongKey`]: no slot opens.
    /// [`Error::Damaged`]: `config` is, or every slot that could have opened.
    pub async fn open(store: Arc<dyn Store>, secret: &Secret) -> Result<(Self, OpenReport)> {
        let stored = match store.read_all(CONFIG_KEY, MAX_CONFIG).await {
            Ok(stored) => stored,
            Err(e) if e.kind == StoreErrorKind::NotFound => return Err(missing(&*store).await?),
            Err(e) if e.kind == StoreErrorKind::OutOfRange => {
                return Err(Error::damaged(CONFIG_KEY, e.message));
            }
            Err(e) => return Err(e.into()),
        };
        let location = store.location();
        let config = Config::decode(&location, &stored)?;
        config.allow(&location, Operation::Read)?;
        let (found, bad_slots) = find_master(&*store, &config, secret).await?;
        let Some((slot, master)) = found else {
            return Err(match bad_slots.into_iter().find(|s| s.damaged) {
                Some(bad) => Error::damaged(
                    bad.key,
                    format!("{}; no other key slot opens with this {}", bad.what, secret.noun()),
                ),
                None => Error::WrongKey { location, secret: secret.noun() },
            });
        };
        config::verify(&master, &stored)?;
        let barred = [Operation::Write, Operation::Gc]
            .into_iter()
            .filter_map(|o| config.allow(&location, o).err().map(|e| (o, e.to_string())))
            .collect();
        let report = OpenReport { slot: slot.clone(), bad_slots, barred };
        Ok((Self::new(store, config, master, slot), report))
    }
}

/// Reads all slots: sound ones by name, and the others.
pub(super) async fn read_slots(
    store: &dyn Store,
    repository: RepositoryId,
) -> Result<(Vec<(String, Slot)>, Vec<BadSlot>)> {
    let (mut slots, mut bad) = (Vec::new(), Vec::new());
    let mut after: Option<String> = None;
    loop {
        let page = store.list(KEYS_PREFIX, after.as_deref()).await?;
        for object in &page.objects {
            if slots.len() + bad.len() == MAX_SLOTS {
                let what = "one of too many slots, not looked at".into();
                bad.push(BadSlot { key: object.key.clone(), what, damaged: false });
                return Ok((slots, bad));
            }
            match read_slot(store, object, repository).await? {
                Some(Ok(slot)) => slots.push(slot),
                Some(Err(e)) => bad.push(e),
                None => {}
            }
        }
        after = page.objects.last().map(|o| o.key.clone());
        if !page.more || after.is_none() {
            return Ok((slots, bad));
        }
    }
}

/// Reads one slot; `None` when it was removed since it was listed.
async fn read_slot(
    store: &dyn Store,
    object: &ObjectInfo,
    repository: RepositoryId,
) -> Result<Option<Result<(String, Slot), BadSlot>>> {
    let key = &object.key;
    let reject = |what: &str, damaged| Err(BadSlot { key: key.clone(), what: what.into(), damaged });
    let Some(name) = slot_name(key) else {
        return Ok(Some(reject("not the name of a key slot", false)));
    };
    if object.size > MAX_SLOT {
        return Ok(Some(reject("too large for a key slot", true)));
    }
    match store.read_all(key, MAX_SLOT).await {
        Ok(stored) => Ok(Some(Slot::decode(key, &stored, repository).map(|slot| (name.to_owned(), slot)))),
        Err(e) if e.kind == StoreErrorKind::NotFound => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// Tries every slot of the secret's kind.
async fn find_master(
    store: &dyn Store,
    config: &Config,
    secret: &Secret,
) -> Result<(Option<(String, MasterKey)>, Vec<BadSlot>)> {
    let (slots, bad) = read_slots(store, config.repository).await?;
    if slots.is_empty() && bad.is_empty() {
        return Err(Error::damaged(KEYS_PREFIX, "there is no key slot"));
    }
    for (name, slot) in slots {
        if slot.kind() != SlotKind::of(secret) {
            continue;
        }
        let secret = secret.clone();
        // Off the async threads: a passphrase takes some tenths of a second and 64 MiB, which are free again after it.
        let tried = blocking(move || Ok((slot.unwrap(&slot.kek(&secret)?, &name)?, name))).await?;
        if let (Some(master), name) = tried {
            return Ok((Some((name, master)), bad));
        }
    }
    Ok((None, bad))
}

/// Runs slow work off the async threads.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|e| Error::Internal(format!("key derivation: {e}")))?
}

/// Milliseconds since the Unix epoch; 0 before it.
pub(crate) fn millis(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}

fn taken(store: &dyn Store) -> Error {
    Error::Repository {
        location: store.location(),
        what: "there is a repository here already".into(),
        hint: Some("use it, or choose another location"),
    }
}

/// Fails unless nothing is here but what an unfinished `init` leaves.
async fn refuse_occupied(store: &dyn Store) -> Result<()> {
    match store.stat(CONFIG_KEY).await {
        Ok(_) => return Err(taken(store)),
        Err(e) if e.kind == StoreErrorKind::NotFound => {}
        Err(e) => return Err(e.into()),
    }
    let mut after: Option<String> = None;
    loop {
        let page = store.list("", after.as_deref()).await?;
        let ours = |key: &str| slot_name(key).is_some() || key.starts_with(PROBE_PREFIX);
        if let Some(other) = page.objects.iter().find(|o| !ours(&o.key)) {
            return Err(Error::Repository {
                location: store.location(),
                what: format!("not empty and not a repository: it holds `{}`", other.key.escape_default()),
                hint: Some(
                    "choose an empty location; if there was a repository here, its `config` is missing",
                ),
            });
        }
        after = page.objects.last().map(|o| o.key.clone());
        if !page.more || after.is_none() {
            return Ok(());
        }
    }
}

/// Why there is no `config`.
async fn missing(store: &dyn Store) -> Result<Error> {
    let others = !store.list(KEYS_PREFIX, None).await?.objects.is_empty();
    Ok(if others {
        Error::Repository {
            location: store.location(),
            what: "`config` is missing: an init that did not finish, or a repository that lost it".into(),
            hint: Some(
                "if nothing was ever backed up here, run init again; otherwise restore `config` from a copy of the bucket",
            ),
        }
    } else {
        Error::Repository {
            location: store.location(),
            what: "there is no repository here".into(),
            hint: Some("check the location; `tradewind init` makes a new repository"),
        }
    })
}

/// Where the capability probe writes.
const PROBE_PREFIX: &str = "probe/";

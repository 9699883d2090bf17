//! Finds out what an endpoint really does, by writing and reading back: some accept a header and ignore it.

use futures_util::future::join_all;

use crate::store::{Body, Store, StoreError, StoreErrorKind as Kind};

/// How many creations of one key run at the same time: a server may keep the promise only when asked slowly.
const RIVALS: u8 = 8;

/// Races, the first that is lost being the last. A server that looks first and writes then was seen to win four of five.
const RACES: u32 = 16;

/// One thing that was tried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Whether it works as it must.
    pub works: bool,
    /// What was seen.
    pub reason: String,
}

impl Finding {
    fn yes(reason: &str) -> Self {
        Self { works: true, reason: reason.to_owned() }
    }

    fn no(reason: impl Into<String>) -> Self {
        Self { works: false, reason: reason.into() }
    }

    /// What an error says about a feature; errors that say nothing about it are passed on.
    fn refused(error: StoreError) -> Result<Self, StoreError> {
        match error.kind {
            Kind::Transient | Kind::Unreachable | Kind::Full => Err(error),
            _ => Ok(Self::no(error.to_string())),
        }
    }
}

/// What a store can do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capabilities {
    /// [`Store::create`] refuses a key that exists.
    pub conditional_create: Finding,
    /// [`Store::finish_upload`] refuses a key that exists.
    pub conditional_finish: Finding,
    /// Of several creations of one key at the same time one succeeds. Some servers look first and write then.
    pub one_winner: Finding,
    /// Uploads in parts arrive whole.
    pub multipart: Finding,
    /// What was written can be read at once.
    pub read_after_write: Finding,
    /// What was written is listed at once.
    pub list_after_write: Finding,
    /// Exactly the bytes asked for are returned.
    pub ranged_reads: Finding,
    /// Objects can be deleted, and then are gone. Writers need no such right.
    pub delete: Finding,
}

impl Capabilities {
    /// All findings with their names, for reports.
    pub fn findings(&self) -> [(&'static str, &Finding); 8] {
        [
            ("conditional create", &self.conditional_create),
            ("conditional finish", &self.conditional_finish),
            ("one winner", &self.one_winner),
            ("multipart upload", &self.multipart),
            ("read after write", &self.read_after_write),
            ("list after write", &self.list_after_write),
            ("ranged reads", &self.ranged_reads),
            ("delete", &self.delete),
        ]
    }

    /// True when a key has one creator, however it is created: what concurrent writers stand on.
    pub fn create_if_absent(&self) -> bool {
        self.conditional_create.works && self.conditional_finish.works && self.one_winner.works
    }

    /// True when a repository can live here at all, if only with one writer at a time.
    pub fn usable(&self) -> bool {
        [&self.multipart, &self.read_after_write, &self.list_after_write, &self.ranged_reads]
            .iter()
            .all(|f| f.works)
    }
}

/// Tries everything on `store`, with keys under `probe/<random>`, and removes them again where it may. Fails when
/// nothing can be written at all or the store stops answering: then nothing is known.
pub async fn probe(store: &dyn Store) -> Result<Capabilities, StoreError> {
    let probe = Probe { store, at: format!("probe/{:016x}", fastrand::u64(..)) };
    let found = probe.run().await;
    let delete = probe.clean_up().await;
    let mut found = found?;
    found.delete = delete?;
    Ok(found)
}

struct Probe<'a> {
    store: &'a dyn Store,
    at: String,
}

/// Keys that the probe may have written.
fn keys() -> impl Iterator<Item = String> {
    ["one", "parts"].map(str::to_owned).into_iter().chain((1..=RACES).map(race_key))
}

fn race_key(number: u32) -> String {
    format!("race-{number}")
}

impl Probe<'_> {
    fn key(&self, name: &str) -> String {
        format!("{}/{name}", self.at)
    }

    /// Contents that name their writer.
    fn body(&self, writer: u8) -> Vec<u8> {
        format!("Tradewind probe {} by writer {writer:03}", self.at).into_bytes()
    }

    async fn run(&self) -> Result<Capabilities, StoreError> {
        let one = self.key("one");
        self.store.create(&one, self.body(1).into()).await?;
        Ok(Capabilities {
            read_after_write: self.holds(&one, &self.body(1)).await?,
            list_after_write: self.listed(&one).await?,
            ranged_reads: self.range(&one).await?,
            conditional_create: self.second_create(&one).await?,
            conditional_finish: self.second_finish(&one).await?,
            one_winner: self.races().await?,
            multipart: self.parts().await?,
            delete: Finding::no("not tried"),
        })
    }

    async fn holds(&self, key: &str, contents: &[u8]) -> Result<Finding, StoreError> {
        match self.store.read_all(key, 1 << 20).await {
            Ok(found) if found == contents => Ok(Finding::yes("what was written came back")),
            Ok(_) => Ok(Finding::no("other bytes came back than were written")),
            Err(e) => Finding::refused(e),
        }
    }

    async fn listed(&self, key: &str) -> Result<Finding, StoreError> {
        match self.store.list(&format!("{}/", self.at), None).await {
            Ok(page) if page.objects.iter().any(|o| o.key == key) => Ok(Finding::yes("listed at once")),
            Ok(_) => Ok(Finding::no("a new object is missing in the listing")),
            Err(e) => Finding::refused(e),
        }
    }

    async fn range(&self, key: &str) -> Result<Finding, StoreError> {
        let contents = self.body(1);
        match self.store.read(key, 3..10).await {
            Ok(found) if found == contents[3..10] => {}
            Ok(_) => return Ok(Finding::no("other bytes came back than were asked for")),
            Err(e) => return Finding::refused(e),
        }
        let size = contents.len() as u64;
        match self.store.read(key, size - 1..size + 1).await {
            Err(e) if e.kind == Kind::OutOfRange => Ok(Finding::yes("exact")),
            Ok(_) => Ok(Finding::no("a range beyond the end was answered")),
            Err(e) => Finding::refused(e),
        }
    }

    async fn second_create(&self, key: &str) -> Result<Finding, StoreError> {
        match self.store.create(key, self.body(2).into()).await {
            Err(e) if e.kind == Kind::AlreadyExists => {}
            Ok(()) => {
                return Ok(Finding::no(
                    "a second creation of the same key succeeded: the condition is ignored",
                ));
            }
            Err(e) => return Finding::refused(e),
        }
        if self.holds(key, &self.body(1)).await?.works {
            Ok(Finding::yes("refused on an existing key"))
        } else {
            Ok(Finding::no("a second creation was refused but replaced the object"))
        }
    }

    /// Several races: a server that looks first and writes then is lucky now and again.
    async fn races(&self) -> Result<Finding, StoreError> {
        let mut found = Finding::no("not tried");
        for race in (1..=RACES).map(race_key) {
            found = self.race(&self.key(&race)).await?;
            if !found.works {
                break;
            }
        }
        Ok(found)
    }

    async fn race(&self, race: &str) -> Result<Finding, StoreError> {
        let done = join_all((0..RIVALS).map(|n| self.store.create(race, self.body(n).into()))).await;
        let mut winners = Vec::new();
        for (n, outcome) in (0..RIVALS).zip(done) {
            match outcome {
                Ok(()) => winners.push(n),
                Err(e) if e.kind == Kind::AlreadyExists => {}
                Err(e) => return Finding::refused(e),
            }
        }
        match winners[..] {
            [winner] if self.holds(race, &self.body(winner)).await?.works => {
                Ok(Finding::yes("one of several creations at the same time succeeded"))
            }
            [_] => Ok(Finding::no("the object is not the one whose creation succeeded")),
            _ => {
                Ok(Finding::no(format!("{} of {RIVALS} creations at the same time succeeded", winners.len())))
            }
        }
    }

    /// Sends one small part to `key`; what finishing it says.
    async fn upload(&self, key: &str, body: Body) -> Result<Result<(), StoreError>, StoreError> {
        let id = self.store.begin_upload(key).await?;
        let finished = match self.store.upload_part(key, &id, 1, 0, body).await {
            Ok(part) => self.store.finish_upload(key, &id, &[part]).await,
            Err(e) => Err(e),
        };
        if finished.is_err() {
            // It costs space until it is gone; a refusal to abort changes no finding.
            let _ = self.store.abort_upload(key, &id).await;
        }
        Ok(finished)
    }

    async fn second_finish(&self, key: &str) -> Result<Finding, StoreError> {
        match self.upload(key, self.body(3).into()).await {
            Ok(Err(e)) if e.kind == Kind::AlreadyExists => {}
            Ok(Ok(())) => {
                return Ok(Finding::no("an upload replaced an existing object: the condition is ignored"));
            }
            Ok(Err(e)) | Err(e) => return Finding::refused(e),
        }
        if self.holds(key, &self.body(1)).await?.works {
            Ok(Finding::yes("refused on an existing key"))
        } else {
            Ok(Finding::no("an upload was refused but replaced the object"))
        }
    }

    async fn parts(&self) -> Result<Finding, StoreError> {
        let key = self.key("parts");
        match self.upload(&key, self.body(4).into()).await {
            Ok(Ok(())) => self.holds(&key, &self.body(4)).await,
            Ok(Err(e)) | Err(e) => Finding::refused(e),
        }
    }

    async fn clean_up(&self) -> Result<Finding, StoreError> {
        for name in keys() {
            if let Err(e) = self.store.delete(&self.key(&name)).await {
                return Finding::refused(e);
            }
        }
        match self.store.read_all(&self.key("one"), 1 << 20).await {
            Err(e) if e.kind == Kind::NotFound => Ok(Finding::yes("gone at once")),
            Ok(_) => Ok(Finding::no("a deleted object can still be read")),
            Err(e) => Finding::refused(e),
        }
    }
}

#[cfg(test)]
mod tests;

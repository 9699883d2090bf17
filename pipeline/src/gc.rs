//! Garbage collection's records, as writers and readers must understand them.
//!
//! ```text
//! gc/<generation, 8 hex>/condemned-<part, 8 hex>    names of packs that must not be used any more
//! gc/<generation, 8 hex>/condemned                  head: makes the generation exist; written after its parts
//! gc/<generation, 8 hex>/deleted-<part, 8 hex>      names of those that were really deleted
//! gc/<generation, 8 hex>/deleted                    head: the others of this generation were needed and stay
//! ```
//! Generations are numbered from 1. A part is the packs' names as bytes (16 of id, 12 of session), sorted; a head is
//! JSON. `FORMAT.md` has the protocol and why it is safe; what writers owe it is in [`crate::session`].

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::manifest::shape;
use crate::pack::{PackName, SessionId};
use crate::repository::{MAX_RECORD, Repository};
use crate::seal::object::ObjectClass;
use crate::store::StoreErrorKind;

/// Prefix of all records' keys.
pub const GC_PREFIX: &str = "gc/";

/// Most packs that one part names.
pub const PART_PACKS: usize = 1 << 16;

const NAME: usize = 28;

/// The head of a list of packs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// Its generation.
    pub generation: u32,
    /// How many parts the list has, numbered from 0.
    pub parts: u32,
    /// How many packs they name.
    pub packs: u64,
    /// When it was written, by the store's clock, in milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// Name and version of the program.
    #[serde(default)]
    pub tool: String,
}

/// Which of a generation's two lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Nothing may refer to these packs from now on.
    Condemned,
    /// These packs are gone.
    Deleted,
}

impl Phase {
    fn name(self) -> &'static str {
        match self {
            Self::Condemned => "condemned",
            Self::Deleted => "deleted",
        }
    }
}

/// A generation that exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Generation {
    /// Its number.
    pub number: u32,
    /// How far it has got.
    pub phase: Phase,
}

/// Key of a list's head.
pub fn head_key(generation: u32, phase: Phase) -> String {
    format!("{GC_PREFIX}{generation:08x}/{}", phase.name())
}

/// Key of a list's part.
pub fn part_key(generation: u32, phase: Phase, part: u32) -> String {
    format!("{GC_PREFIX}{generation:08x}/{}-{part:08x}", phase.name())
}

/// The generation and phase of a head's key, if it is one.
fn parse_head(key: &str) -> Option<(u32, Phase)> {
    let (number, name) = key.strip_prefix(GC_PREFIX)?.split_once('/')?;
    let generation = u32::from_str_radix(number, 16).ok()?;
    let phase = [Phase::Condemned, Phase::Deleted].into_iter().find(|p| p.name() == name)?;
    (head_key(generation, phase) == key).then_some((generation, phase))
}

/// The generations that exist and are newer than `after`, in ascending order.
///
/// # Errors
/// Store errors.
pub async fn generations(repository: &Repository, after: u32) -> Result<Vec<Generation>> {
    let mut found: Vec<Generation> = Vec::new();
    // `~` sorts after every name of generation `after` and before the next number.
    let mut last = Some(format!("{GC_PREFIX}{after:08x}/~"));
    loop {
        let page = repository.store().list(GC_PREFIX, last.as_deref()).await?;
        for (number, phase) in page.objects.iter().filter_map(|o| parse_head(&o.key)) {
            match found.last_mut() {
                Some(g) if g.number == number => g.phase = phase,
                // A list of deletions alone: its generation's records are being cleared away.
                _ => found.push(Generation { number, phase }),
            }
        }
        last = page.objects.last().map(|o| o.key.clone());
        if !page.more || last.is_none() {
            return Ok(found);
        }
    }
}

/// Calls `visit` for each pack that must not be referred to: condemned and not yet decided, or deleted. Looks at the
/// generations newer than `after` (0: all) and returns the newest number, or `after` when there is none newer.
/// Memory: one part.
///
/// # Errors
/// [`Error::Damaged`] when a list is not whole: whoever wanted to refer to packs must then not, because it cannot
/// know which; store errors.
pub async fn visit_unusable(
    repository: &Repository,
    after: u32,
    visit: &mut (dyn FnMut(PackName) + Send),
) -> Result<u32> {
    let mut newest = after;
    for Generation { number, phase } in generations(repository, after).await? {
        newest = number;
        let mut read = visit_list(repository, number, phase, visit).await;
        // Records are cleared away heads first, the deletions' before the condemned's: a list whose head is gone is
        // no list any more, and its parts may be missing. What was visited in between does no harm.
        if read.is_err() && phase == Phase::Deleted && is_gone(repository, number, phase).await? {
            read = visit_list(repository, number, Phase::Condemned, visit).await;
        }
        if read.is_err() && is_gone(repository, number, Phase::Condemned).await? {
            continue;
        }
        read?;
    }
    Ok(newest)
}

async fn visit_list(
    repository: &Repository,
    number: u32,
    phase: Phase,
    visit: &mut (dyn FnMut(PackName) + Send),
) -> Result<()> {
    let head = read_head(repository, number, phase).await?;
    let mut packs = 0;
    for part in 0..head.parts {
        packs += read_part(repository, &part_key(number, phase, part), visit).await?;
    }
    if packs != head.packs {
        return Err(Error::damaged(head_key(number, phase), "its parts name another number of packs"));
    }
    Ok(())
}

async fn is_gone(repository: &Repository, number: u32, phase: Phase) -> Result<bool> {
    match repository.store().stat(&head_key(number, phase)).await {
        Ok(_) => Ok(false),
        Err(e) if e.kind == StoreErrorKind::NotFound => Ok(true),
        Err(e) => Err(e.into()),
    }
}

/// Reads a list's head.
///
/// # Errors
/// [`Error::Damaged`]; store errors.
pub async fn read_head(repository: &Repository, generation: u32, phase: Phase) -> Result<Head> {
    let key = head_key(generation, phase);
    let plain = repository
        .get(ObjectClass::Gc, &key, MAX_RECORD)
        .await?
        .ok_or_else(|| Error::damaged(&key, "is missing"))?;
    let head: Head = serde_json::from_slice(&plain)
        .map_err(|e| Error::damaged(&key, format!("not a head: {}", shape(&e))))?;
    if head.generation != generation {
        return Err(Error::damaged(&key, "head of another generation"));
    }
    Ok(head)
}

async fn read_part(
    repository: &Repository,
    key: &str,
    visit: &mut (dyn FnMut(PackName) + Send),
) -> Result<u64> {
    let plain = repository
        .get(ObjectClass::Gc, key, MAX_RECORD)
        .await?
        .ok_or_else(|| Error::damaged(key, "is missing"))?;
    if plain.len() % NAME != 0 || plain.len() / NAME > PART_PACKS {
        return Err(Error::damaged(key, "length does not fit"));
    }
    for name in plain.chunks_exact(NAME) {
        let (mut id, mut session) = ([0; 16], [0; 12]);
        id.copy_from_slice(&name[..16]);
        session.copy_from_slice(&name[16..]);
        visit(PackName { id, session: SessionId(session) });
    }
    Ok((plain.len() / NAME) as u64)
}

/// Writes a list: its parts, then its head. `packs` must be sorted. Until the head is there, nothing has happened.
///
/// # Errors
/// [`Error::Conflict`] when the generation was taken by another collection; store errors.
pub async fn write_list(
    repository: &Repository,
    generation: u32,
    phase: Phase,
    packs: impl IntoIterator<Item = PackName, IntoIter: Send>,
) -> Result<Head> {
    let mut head = Head { generation, parts: 0, packs: 0, at_ms: 0, tool: crate::TOOL.to_owned() };
    let mut packs = packs.into_iter().peekable();
    while packs.peek().is_some() {
        let mut plain = Vec::with_capacity(PART_PACKS.min(1 << 10) * NAME);
        for pack in packs.by_ref().take(PART_PACKS) {
            plain.extend_from_slice(&pack.id);
            plain.extend_from_slice(&pack.session.0);
            head.packs += 1;
        }
        repository.put(ObjectClass::Gc, &part_key(generation, phase, head.parts), &plain).await?;
        head.parts += 1;
    }
    head.at_ms = repository.now_ms().await?;
    let plain = serde_json::to_vec(&head).map_err(|e| Error::Internal(format!("gc head: {e}")))?;
    repository.put(ObjectClass::Gc, &head_key(generation, phase), &plain).await?;
    Ok(head)
}

#[cfg(test)]
mod tests;

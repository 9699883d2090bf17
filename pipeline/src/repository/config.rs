//! The `config` object: what a repository is, in clear, and a tag that says so under the master key.
//!
//! ```text
//!  0  magic        8  "TWINDCFG"
//!  8  format       2  layout of this object, little-endian like all numbers here
//! 10  min reader   2  lowest format level a program must have to read the repository,
//! 12  min writer   2    to write snapshots,
//! 14  min gc       2    to collect garbage
//! 16  JSON bytes   4
//! 20  JSON            see Config
//!     checksum    16  BLAKE3 of everything before: tells damage from a wrong key before any key is known
//!     tag         32  BLAKE3, keyed from the master key, of everything before
//! ```
//! It is readable without a key, because whoever opens a repository must first learn whether it can be opened, and
//! with which salt and parameters. It is trusted only once the tag has been verified. It never changes.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::chunk::valid_block_chunk;
use crate::error::{Error, Result};
use crate::seal::MasterKey;

/// Key of the object.
pub const CONFIG_KEY: &str = "config";

/// Format level of this program: what a repository's minimum levels are compared with.
pub const FORMAT_LEVEL: u16 = 1;

/// Features of a repository, beyond its format level, that this program knows. None exist yet.
pub const KNOWN_FEATURES: &[&str] = &[];

/// Largest config that is read, in bytes.
pub const MAX_CONFIG: u64 = 64 << 10;

const MAGIC: &[u8; 8] = b"TWINDCFG";
const LAYOUT: u16 = 1;
const HEADER: usize = 20;
const CHECKSUM: usize = 16;
const TAG: usize = 32;

/// Identity of a repository: 16 random bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct RepositoryId(pub [u8; 16]);

impl fmt::Display for RepositoryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for RepositoryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

crate::manifest::hex_serde!(RepositoryId);

/// What somebody wants to do with a repository. A newer repository can allow one and forbid another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// List, restore, verify.
    Read,
    /// Add snapshots, forget them, change keys.
    Write,
    /// Delete what no snapshot needs.
    Gc,
}

impl Operation {
    /// The name in `config`: `read`, `write` or `gc`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Gc => "gc",
        }
    }

    fn verb(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write to",
            Self::Gc => "collect garbage in",
        }
    }
}

/// Sizes of content-defined chunks, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CdcSizes {
    /// No chunk but a file's last is smaller.
    pub min: u32,
    /// What the cut condition aims at.
    pub average: u32,
    /// No chunk is larger.
    pub max: u32,
}

impl CdcSizes {
    /// True when a reader is built to bear them: 4 KiB <= minimum < average < maximum <= 4 MiB.
    pub fn is_valid(&self) -> bool {
        4 << 10 <= self.min && self.min < self.average && self.average < self.max && self.max <= 4 << 20
    }
}

/// Defaults of new snapshots. What an existing snapshot was cut with is in its manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parameters {
    /// Bytes of a block volume's chunk: a power of two, 16 KiB to 4 MiB.
    pub block_chunk: u32,
    /// Chunks of large files.
    pub cdc: CdcSizes,
    /// Bytes at which a pack is finished.
    pub pack: u32,
}

impl Default for Parameters {
    fn default() -> Self {
        Self {
            block_chunk: 256 << 10,
            cdc: CdcSizes { min: 128 << 10, average: 512 << 10, max: 2 << 20 },
            pack: 64 << 20,
        }
    }
}

impl Parameters {
    /// Checks every value against what a reader is built to bear.
    ///
    /// # Errors
    /// A text that says which value is outside of which bounds.
    pub fn check(&self) -> Result<(), String> {
        if !valid_block_chunk(self.block_chunk) {
            return Err(format!(
                "block chunk size {}: give a power of two from 16 KiB to 4 MiB",
                self.block_chunk
            ));
        }
        if !self.cdc.is_valid() {
            let CdcSizes { min, average, max } = self.cdc;
            return Err(format!(
                "chunk sizes {min}/{average}/{max}: give 4 KiB <= minimum < average < maximum <= 4 MiB"
            ));
        }
        if !(8 << 20..=256 << 20).contains(&self.pack) {
            return Err(format!("pack size {}: give 8 MiB to 256 MiB", self.pack));
        }
        Ok(())
    }
}

/// What a repository is. Fields that a later version adds are ignored; what must not be ignored is a feature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// Lowest format levels for reading, writing and garbage collection. In the binary header, not in the JSON.
    #[serde(skip)]
    pub min_level: [u16; 3],
    /// Identity of the repository.
    pub repository: RepositoryId,
    /// Key epoch of new packs and objects.
    pub epoch: u32,
    /// Defaults of new snapshots.
    pub parameters: Parameters,
    /// Features that a program must know before it may do the listed operations (see [`Operation::name`]).
    #[serde(default)]
    pub features: BTreeMap<String, Vec<String>>,
    /// The store does not honour create-if-absent and the user accepted it: one writer at a time, and no garbage
    /// collection beside a writer.
    #[serde(default)]
    pub single_writer: bool,
    /// When the repository was made, by the store's clock, in milliseconds since the Unix epoch.
    pub created_ms: u64,
    /// What made it.
    pub tool: String,
}

impl Config {
    /// The object's bytes, with their tag.
    ///
    /// # Errors
    /// [`Error::Internal`] when it does not serialise.
    pub fn encode(&self, master: &MasterKey) -> Result<Vec<u8>> {
        let json = serde_json::to_vec(self).map_err(|e| Error::Internal(format!("config: {e}")))?;
        let len = u32::try_from(json.len()).map_err(|_| Error::Internal("config length".into()))?;
        let mut out = Vec::with_capacity(HEADER + json.len() + CHECKSUM + TAG);
        out.extend_from_slice(MAGIC);
        for number in [LAYOUT].iter().chain(&self.min_level) {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(&len.to_le_bytes());
        out.extend_from_slice(&json);
        out.extend_from_slice(&checksum(&out));
        out.extend_from_slice(&tag(master, &out));
        Ok(out)
    }

    /// Reads the clear part. What it says is not trusted until [`verify`] has seen the master key; nothing secret
    /// depends on it before.
    ///
    /// # Errors
    /// [`Error::Repository`] when this is not a config, or a newer one; [`Error::Damaged`] when it was one.
    pub fn decode(location: &str, stored: &[u8]) -> Result<Self> {
        let foreign = |what: String, hint| Error::Repository { location: location.into(), what, hint };
        let damaged = |what: &str| Error::damaged(CONFIG_KEY, what);
        if stored.len() < HEADER || &stored[..8] != MAGIC {
            return Err(foreign("not a Tradewind repository: `config` is something else".into(), None));
        }
        let short = |at: usize| u16::from_le_bytes([stored[at], stored[at + 1]]);
        if short(8) != LAYOUT {
            return Err(foreign(
                format!(
                    "`config` has format {}, which this version does not know; it reads {LAYOUT}",
                    short(8)
                ),
                Some("use a newer version of tradewind; if there is none, `config` is damaged"),
            ));
        }
        let len = u32::from_le_bytes([stored[16], stored[17], stored[18], stored[19]]) as usize;
        let end = HEADER + len.min(stored.len());
        if stored.len() != end + CHECKSUM + TAG || len > stored.len() {
            return Err(damaged("length does not fit"));
        }
        if stored[end..end + CHECKSUM] != checksum(&stored[..end]) {
            return Err(damaged("checksum does not match"));
        }
        let mut config: Self =
            serde_json::from_slice(&stored[HEADER..end]).map_err(|_| damaged("not the expected JSON"))?;
        config.min_level = [short(10), short(12), short(14)];
        config.parameters.check().map_err(|what| damaged(&what))?;
        Ok(config)
    }

    /// Fails when this program must not do `operation` here.
    ///
    /// # Errors
    /// [`Error::Repository`] naming the missing level or feature.
    pub fn allow(&self, location: &str, operation: Operation) -> Result<()> {
        let level = self.min_level[operation as usize];
        let newer = |what: String| {
            Err(Error::Repository {
                location: location.into(),
                what,
                hint: Some("use a newer version of tradewind"),
            })
        };
        if level > FORMAT_LEVEL {
            return newer(format!(
                "to {} this repository takes format level {level}, this version has {FORMAT_LEVEL}",
                operation.verb()
            ));
        }
        let bars = |name: &str, operations: &[String]| {
            !KNOWN_FEATURES.contains(&name) && operations.iter().any(|o| o == operation.name())
        };
        match self.features.iter().find(|(name, operations)| bars(name, operations)) {
            Some((name, _)) => newer(format!(
                "to {} this repository takes the feature `{}`, which this version does not have",
                operation.verb(),
                name.escape_default()
            )),
            None => Ok(()),
        }
    }
}

/// Verifies a config's tag. Until then nothing in it can be believed.
///
/// # Errors
/// [`Error::Damaged`].
pub fn verify(master: &MasterKey, stored: &[u8]) -> Result<()> {
    let split = stored.len().saturating_sub(TAG);
    let found: [u8; TAG] =
        stored[split..].try_into().map_err(|_| Error::damaged(CONFIG_KEY, "shorter than its tag"))?;
    // `Hash` compares in constant time.
    if blake3::Hash::from_bytes(tag(master, &stored[..split])) == blake3::Hash::from_bytes(found) {
        Ok(())
    } else {
        Err(Error::damaged(CONFIG_KEY, "authentication failed"))
    }
}

fn checksum(bytes: &[u8]) -> [u8; CHECKSUM] {
    let mut out = [0; CHECKSUM];
    out.copy_from_slice(&blake3::hash(bytes).as_bytes()[..CHECKSUM]);
    out
}

fn tag(master: &MasterKey, bytes: &[u8]) -> [u8; TAG] {
    let key = zeroize::Zeroizing::new(master.derive("tradewind v1 config", &[]));
    *blake3::keyed_hash(&key, bytes).as_bytes()
}

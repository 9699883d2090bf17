//! Adding, removing and changing the secrets that open a repository. The master key stays the same: a secret that
//! leaked together with a copy of `keys/` opens that copy for ever.

use bytes::Bytes;

use super::open::{blocking, millis, read_slots};
use super::slots::{BadSlot, KEYS_PREFIX, MAX_LABEL, MAX_SLOTS, Slot, SlotDraft, SlotInfo, slot_key};
use super::{Created, Operation, Repository, create_once};
use crate::error::{Error, Result};
use crate::seal::Secret;
use crate::seal::keys::{Kdf, SALT};

impl Repository {
    /// The key slots, and those that cannot be used.
    ///
    /// # Errors
    /// Store errors.
    pub async fn list_keys(&self) -> Result<(Vec<SlotInfo>, Vec<BadSlot>)> {
        let (slots, bad) = read_slots(&*self.store, self.config.repository).await?;
        Ok((slots.iter().map(|(name, slot)| slot.info(name)).collect(), bad))
    }

    /// Adds a slot for `secret`.
    ///
    /// # Errors
    /// [`Error::Usage`]: an unacceptable secret or label, or too many slots. Store errors.
    pub async fn add_key(&self, secret: &Secret, label: &str) -> Result<SlotInfo> {
        self.allow(Operation::Write)?;
        secret.check_for_new_slot()?;
        if label.len() > MAX_LABEL || label.chars().any(char::is_control) {
            return Err(Error::Usage(format!(
                "a label has at most {MAX_LABEL} bytes and no control characters"
            )));
        }
        let (slots, bad) = read_slots(&*self.store, self.config.repository).await?;
        if slots.len() + bad.len() >= MAX_SLOTS {
            return Err(Error::Usage(format!("there are {MAX_SLOTS} key slots already: remove one first")));
        }
        let mut random = [0u8; 8 + SALT];
        getrandom::fill(&mut random).map_err(|e| Error::Internal(format!("no randomness: {e}")))?;
        let (name, salt) = random.split_at(8);
        let name = hex::encode(name);
        let salt: [u8; SALT] = salt.try_into().map_err(|_| Error::Internal("salt length".into()))?;
        let created_ms = millis(self.store.now().await?);
        let (master, secret, label) = (self.master.clone(), secret.clone(), label.to_owned());
        let (repository, epoch) = (self.config.repository, self.config.epoch);
        let kdf = match secret {
            Secret::Passphrase(_) => Kdf::PASSPHRASE,
            Secret::KeyFile(_) => Kdf::Blake3 {},
        };
        let (slot, name) = blocking(move || {
            let draft = SlotDraft { repository, epoch, name: &name, label: &label, created_ms, kdf, salt };
            let slot = Slot::seal(&draft, &secret, &master)?;
            Ok((slot, name))
        })
        .await?;
        match create_once(&*self.store, &slot_key(&name), Bytes::from(slot.encode()?)).await? {
            Created::Yes => Ok(slot.info(&name)),
            Created::Taken => Err(Error::Internal(format!("key slot {name} exists already"))),
        }
    }

    /// Removes the slot called `name`, or the only one that starts with `name`, and returns its name. A damaged
    /// slot can be removed too.
    ///
    /// # Errors
    /// [`Error::Usage`]: no such slot, more than one, or it is the last sound one.
    pub async fn remove_key(&self, name: &str) -> Result<String> {
        self.allow(Operation::Write)?;
        let (slots, bad) = read_slots(&*self.store, self.config.repository).await?;
        let sound = slots.iter().map(|(name, _)| slot_key(name));
        let all: Vec<String> = sound.chain(bad.into_iter().map(|b| b.key)).collect();
        let wanted = slot_key(name);
        let matching: Vec<&String> = all.iter().filter(|key| key.starts_with(&wanted)).collect();
        let key = match matching[..] {
            [key] if !name.is_empty() => key.clone(),
            _ if all.contains(&wanted) => wanted,
            [] => return Err(Error::Usage(format!("there is no key slot {name}; `key list` shows them"))),
            _ => return Err(Error::Usage(format!("more than one key slot starts with `{name}`"))),
        };
        if !slots.iter().any(|(other, _)| slot_key(other) != key) {
            return Err(Error::Usage(
                "this is the last key slot: without it nobody can open the repository".into(),
            ));
        }
        self.store.delete(&key).await?;
        Ok(key.strip_prefix(KEYS_PREFIX).unwrap_or(&key).to_owned())
    }

    /// Adds a slot for `secret`, then removes the one that opened this repository. In that order: whatever happens
    /// in between, a known secret opens it. Without a `label` the new slot has the old one's. The second value is the
    /// failure to remove the old slot, if it failed.
    ///
    /// # Errors
    /// As [`Repository::add_key`]; nothing has changed then.
    pub async fn change_key(
        &mut self,
        secret: &Secret,
        label: Option<&str>,
    ) -> Result<(SlotInfo, Option<Error>)> {
        let label = match label {
            Some(label) => label.to_owned(),
            None => {
                let (slots, _) = self.list_keys().await?;
                slots.into_iter().find(|s| s.name == self.slot).map(|s| s.label).unwrap_or_default()
            }
        };
        let added = self.add_key(secret, &label).await?;
        let old = std::mem::replace(&mut self.slot, added.name.clone());
        let failed = self.remove_key(&old).await.err();
        Ok((added, failed))
    }
}

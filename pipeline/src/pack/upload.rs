//! Sends packs while they fill: one task per pack, its parts in parallel, bounded by the pool of part buffers.
//!
//! A buffer goes back to the pool when the store has acknowledged its part, so a slow store holds the writers back
//! and memory is the parts in flight, whatever the packs' size.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::mpsc;

use super::PackName;
use super::writer::Placed;
use crate::error::{Error, FirstError, Result};
use crate::io::{Buf, Pool};
use crate::progress::{Counter, Progress, Station};
use crate::store::{Body, OpenUpload, Store, StoreError};

/// Called when a pack is durable: its name, its size in bytes, its chunks.
pub type Finished = Box<dyn Fn(PackName, u64, Vec<Placed>) + Send + Sync>;

/// All uploads of a run.
pub struct Uploads {
    store: Arc<dyn Store>,
    runtime: tokio::runtime::Handle,
    parts: Pool,
    failure: Arc<FirstError>,
    progress: Arc<Progress>,
    finished: Finished,
    /// Uploads that the store knows and that are not finished: pack key to upload id.
    open: Mutex<HashMap<String, String>>,
    tasks: Mutex<tokio::task::JoinSet<()>>,
}

impl std::fmt::Debug for Uploads {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Uploads").field("store", &self.store).finish_non_exhaustive()
    }
}

enum Message {
    Part(Bytes),
    Finish { last: Bytes, size: u64, placed: Vec<Placed> },
}

/// Sends the parts of one pack. Dropped without [`PackSender::finish`], the upload is aborted.
#[derive(Debug)]
pub struct PackSender(mpsc::UnboundedSender<Message>);

impl PackSender {
    /// Sends a full part.
    ///
    /// # Errors
    /// [`Error::Cancelled`]: the upload failed; the reason is in the run's first error.
    pub fn part(&self, part: Bytes) -> Result<()> {
        self.0.send(Message::Part(part)).map_err(|_| Error::Cancelled)
    }

    /// Sends the last part and completes the pack of `size` bytes.
    ///
    /// # Errors
    /// As [`PackSender::part`].
    pub fn finish(self, last: Bytes, size: u64, placed: Vec<Placed>) -> Result<()> {
        self.0.send(Message::Finish { last, size, placed }).map_err(|_| Error::Cancelled)
    }
}

impl Uploads {
    /// Uploads to `store` with part buffers from `parts`.
    pub fn new(
        store: Arc<dyn Store>,
        runtime: tokio::runtime::Handle,
        parts: Pool,
        failure: Arc<FirstError>,
        progress: Arc<Progress>,
        finished: Finished,
    ) -> Arc<Self> {
        Arc::new(Self {
            store,
            runtime,
            parts,
            failure,
            progress,
            finished,
            open: Mutex::default(),
            tasks: Mutex::default(),
        })
    }

    /// Counters of the run.
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// A part buffer, waiting until the store has acknowledged enough of what is in flight.
    ///
    /// # Errors
    /// [`Error::Cancelled`] when the run is cancelled or failed meanwhile.
    pub fn take_part(&self) -> Result<Buf> {
        if let Some(part) = self.parts.try_take() {
            return Ok(whole(part));
        }
        let start = Instant::now();
        loop {
            self.failure.check()?;
            self.progress.check()?;
            if let Some(part) = self.parts.take_timeout(Duration::from_millis(100)) {
                self.progress.waited_for(Station::Store, start.elapsed());
                return Ok(whole(part));
            }
        }
    }

    /// Starts the upload of a pack in parts.
    pub fn begin(self: &Arc<Self>, name: PackName) -> PackSender {
        let (sender, messages) = mpsc::unbounded_channel();
        let this = Arc::clone(self);
        self.spawn(async move {
            let key = name.key();
            match this.send_parts(&key, name, messages).await {
                Ok(()) => {}
                Err(error) => this.failure.set(error),
            }
        });
        PackSender(sender)
    }

    /// Sends a pack that fits into one part.
    ///
    /// # Errors
    /// [`Error::Cancelled`] when the run has failed; the store's errors end up in the run's first error.
    pub fn send_whole(self: &Arc<Self>, name: PackName, pack: Bytes, placed: Vec<Placed>) -> Result<()> {
        self.failure.check()?;
        let this = Arc::clone(self);
        self.spawn(async move {
            let size = pack.len() as u64;
            let key = name.key();
            let created = tokio::select! {
                created = this.store.create(&key, Body::from(pack)) => created,
                () = this.cancelled() => return,
            };
            match created {
                Ok(()) => this.done(name, size, placed),
                Err(error) => this.failure.set(error.into()),
            }
        });
        Ok(())
    }

    /// Uploads under way: pack keys and the store's upload ids. Recorded in checkpoints so that the next run can
    /// abort them.
    pub fn open(&self) -> Vec<OpenUpload> {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.iter().map(|(key, upload)| OpenUpload { key: key.clone(), upload: upload.clone() }).collect()
    }

    /// Waits until every upload has ended, well or not. Unfinished packs whose sender is gone are aborted.
    pub async fn settle(&self) {
        loop {
            let mut tasks = {
                let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
                std::mem::take(&mut *tasks)
            };
            if tasks.is_empty() {
                return;
            }
            while let Some(ended) = tasks.join_next().await {
                if let Err(e) = ended {
                    self.failure.set(Error::Internal(format!("upload task: {e}")));
                }
            }
        }
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        // Ended tasks are forgotten as we go: their number must not grow with the volume.
        while let Some(ended) = tasks.try_join_next() {
            if let Err(e) = ended {
                self.failure.set(Error::Internal(format!("upload task: {e}")));
            }
        }
        tasks.spawn_on(task, &self.runtime);
    }

    fn done(&self, name: PackName, size: u64, placed: Vec<Placed>) {
        self.progress.add(Counter::Packs, 1);
        (self.finished)(name, size, placed);
    }

    async fn send_parts(
        &self,
        key: &str,
        name: PackName,
        mut messages: mpsc::UnboundedReceiver<Message>,
    ) -> Result<()> {
        let upload = self.store.begin_upload(key).await?;
        self.record(key, Some(upload.clone()));
        let result = self.receive(key, name, &upload, &mut messages).await;
        if !matches!(result, Ok(true)) {
            // The run failed or was cancelled: give the space back now rather than in some clean-up later.
            let _ = self.store.abort_upload(key, &upload).await;
        }
        self.record(key, None);
        Ok(result.map(|_| ())?)
    }

    /// Returns once the run is cancelled: whoever wants to stop does not wait for what a slow store still has to take.
    async fn cancelled(&self) {
        while self.progress.check().is_ok() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// True when the pack is complete, false when its writer went away or the run is cancelled.
    async fn receive(
        &self,
        key: &str,
        name: PackName,
        upload: &str,
        messages: &mut mpsc::UnboundedReceiver<Message>,
    ) -> Result<bool, StoreError> {
        let mut sending = FuturesUnordered::new();
        let mut parts = Vec::new();
        let (mut number, mut offset) = (0, 0);
        let mut finish = None;
        let mut open = true;
        let mut cancelled = std::pin::pin!(self.cancelled());
        while open || !sending.is_empty() {
            tokio::select! {
                message = messages.recv(), if open => {
                    let bytes = match message {
                        Some(Message::Part(bytes)) => bytes,
                        Some(Message::Finish { last, size, placed }) => {
                            open = false;
                            finish = Some((size, placed));
                            last
                        }
                        None => return Ok(false),
                    };
                    number += 1;
                    let len = bytes.len() as u64;
                    if len > 0 {
                        sending.push(self.store.upload_part(key, upload, number, offset, Body::from(bytes)));
                    }
                    offset += len;
                }
                Some(sent) = sending.next() => parts.push(sent?),
                () = &mut cancelled => return Ok(false),
            }
        }
        let Some((size, placed)) = finish else { return Ok(false) };
        parts.sort_by_key(|p| p.number);
        self.store.finish_upload(key, upload, &parts).await?;
        self.done(name, size, placed);
        Ok(true)
    }

    fn record(&self, key: &str, upload: Option<String>) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        match upload {
            Some(upload) => open.insert(key.to_owned(), upload),
            None => open.remove(key),
        };
    }
}

fn whole(mut part: Buf) -> Buf {
    let capacity = part.capacity();
    part.set_len(capacity);
    part
}

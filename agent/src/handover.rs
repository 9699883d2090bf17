//! Volumes handed over: a pod holds a volume, opens it and sends the descriptors; the agent on its node takes them. So the
//! agent needs no privilege to mount or to open anything, and sees no folder of the kubelet.
//!
//! The socket is a file in a folder of the node that both have. One message: the UID of the job and its token, in a
//! fixed form ([`MESSAGE`] bytes), with one or two descriptors (unix(7), `SCM_RIGHTS`). Nothing is looked at before the
//! token was compared. The connection stays open while the volume is held; [`DONE`] lets the pod end, and a connection that
//! breaks is one that the pod makes anew, for instance because the agent was restarted.
//!
//! - A file system: one descriptor, of its root directory, opened with `O_PATH`, for which no right to read is needed. The
//!   agent opens it again with its own rights.
//! - A block device: one descriptor for buffered transfers and one with `O_DIRECT`, if it can be had. The agent could not
//!   open them again: its device cgroup has no such device.

use std::collections::HashMap;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, Interest};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;

use crate::objects::Uid;

/// The socket's name in its folder.
pub(crate) const SOCKET: &str = "agent.sock";
/// Bytes of a token, written as hexadecimal digits.
pub(crate) const TOKEN: usize = 32;
/// Bytes of the message: a UID, a space, a token, a line's end.
const MESSAGE: usize = Uid::LEN + 1 + 2 * TOKEN + 1;
/// Most descriptors of a volume.
const DESCRIPTORS: usize = 2;
/// What the agent says when the volume is not needed any more.
pub(crate) const DONE: &[u8] = b"done\n";
/// How long a connection may take to say who it is.
const PATIENCE: Duration = Duration::from_secs(10);

/// A volume that a pod of this node holds, until this is dropped.
#[derive(Debug)]
pub(crate) struct Held {
    descriptors: Vec<OwnedFd>,
    /// True once the pod has gone.
    gone: watch::Receiver<bool>,
    /// Dropped: the connection ends without a word, and the pod makes another.
    release: tokio::sync::mpsc::Sender<()>,
}

impl Held {
    /// Its descriptors: of a directory, or of a device (buffered, then with `O_DIRECT`).
    pub(crate) fn descriptors(&self) -> std::io::Result<Vec<OwnedFd>> {
        self.descriptors.iter().map(OwnedFd::try_clone).collect()
    }

    /// Turns true when the pod that holds it has gone.
    pub(crate) fn gone(&self) -> watch::Receiver<bool> {
        self.gone.clone()
    }

    /// One without descriptors, and what says that its pod has gone.
    #[cfg(test)]
    pub(crate) fn for_tests() -> (watch::Sender<bool>, Arc<Self>) {
        let (went, gone) = watch::channel(false);
        let (release, _) = tokio::sync::mpsc::channel(1);
        (went, Arc::new(Self { descriptors: Vec::new(), gone, release }))
    }

    /// Lets the pod end.
    pub(crate) fn release(&self) {
        // Full: it was told already. Closed: it has gone.
        let _ = self.release.try_send(());
    }
}

/// The volumes that pods of this node hold.
#[derive(Debug, Default, Clone)]
pub(crate) struct Handover(Arc<Mutex<HashMap<Uid, Arc<Held>>>>);

/// What a job's pod must know, and whom to tell.
pub(crate) trait Jobs: Clone + Send + Sync + 'static {
    /// The token of a job that is waiting for its volume, if there is such a job.
    fn token(&self, job: &Uid) -> impl Future<Output = Option<[u8; TOKEN]>> + Send;
    /// The volume of this job has come, or gone.
    fn changed(&self, job: &Uid);
}

impl Handover {
    /// The volume of a job, if its pod is here.
    pub(crate) fn held(&self, job: &Uid) -> Option<Arc<Held>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(job).cloned()
    }

    /// Listens in `folder` until it is dropped.
    ///
    /// # Errors
    /// When the socket cannot be made there.
    pub(crate) async fn listen(self, folder: &Path, jobs: impl Jobs) -> std::io::Result<()> {
        let path = folder.join(SOCKET);
        // Of an agent before this one: nobody can listen on it any more.
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&path)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
        loop {
            let (connection, _) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Too many open files, most likely: it will pass.
                    tracing::warn!("cannot accept a connection on {}: {error}", path.display());
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    continue;
                }
            };
            let (this, jobs) = (self.clone(), jobs.clone());
            tokio::spawn(async move {
                if let Err(refused) = this.serve(connection, &jobs).await {
                    tracing::warn!("a volume was not taken: {refused}");
                }
            });
        }
    }

    /// One connection, to its end.
    async fn serve(&self, mut connection: UnixStream, jobs: &impl Jobs) -> Result<(), String> {
        let user = connection.peer_cred().map_err(|e| e.to_string())?.uid();
        if user != 0 && user != rustix::process::geteuid().as_raw() {
            return Err(format!("its sender is of user {user}"));
        }
        let received = tokio::time::timeout(PATIENCE, receive(&connection)).await;
        let (message, descriptors) =
            received.map_err(|_| "its sender said nothing".to_owned())?.map_err(|e| e.to_string())?;
        let job = Uid::parse(&message[..Uid::LEN]).ok_or("that is no job")?;
        let known = jobs.token(&job).await.ok_or_else(|| format!("nobody waits for one of job {job}"))?;
        if !same(&message[Uid::LEN + 1..MESSAGE - 1], hex::encode(known).as_bytes()) {
            return Err(format!("the token is not that of job {job}"));
        }
        if descriptors.is_empty() {
            return Err(format!("the message of job {job} has no descriptor"));
        }
        let (went, gone) = watch::channel(false);
        let (release, mut released) = tokio::sync::mpsc::channel(1);
        let held = Arc::new(Held { descriptors, gone, release });
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(job.clone(), Arc::clone(&held));
        jobs.changed(&job);
        tracing::info!(%job, "volume taken");
        let mut byte = [0];
        tokio::select! {
            // It says nothing more: this ends when it does.
            _ = connection.read(&mut byte) => tracing::info!(%job, "the pod that held the volume has gone"),
            _ = released.recv() => {
                let _ = connection.write_all(DONE).await;
            }
        }
        {
            let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            // A newer connection may have taken its place.
            if all.get(&job).is_some_and(|present| Arc::ptr_eq(present, &held)) {
                all.remove(&job);
            }
        }
        went.send_replace(true);
        jobs.changed(&job);
        Ok(())
    }
}

/// Compares without telling by the time it takes how much is right.
fn same(one: &[u8], other: &[u8]) -> bool {
    aws_lc_rs::constant_time::verify_slices_are_equal(one, other).is_ok()
}

/// Receives one message of [`MESSAGE`] bytes and the descriptors that come with it.
async fn receive(connection: &UnixStream) -> std::io::Result<([u8; MESSAGE], Vec<OwnedFd>)> {
    let mut message = [0; MESSAGE];
    let mut filled = 0;
    let mut descriptors = Vec::new();
    while filled < MESSAGE {
        let read = connection.async_io(Interest::READABLE, || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            let mut into = [IoSliceMut::new(&mut message[filled..])];
            let received =
                rustix::net::recvmsg(connection, &mut into, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
            for part in ancillary.drain() {
                if let RecvAncillaryMessage::ScmRights(fds) = part {
                    descriptors.extend(fds);
                }
            }
            if received.flags.contains(ReturnFlags::CTRUNC) || descriptors.len() > DESCRIPTORS {
                return Err(std::io::Error::other("too many descriptors"));
            }
            Ok(received.bytes)
        });
        match read.await? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            bytes => filled += bytes,
        }
    }
    Ok((message, descriptors))
}

/// Sends the volume of a job.
///
/// # Errors
/// When the agent does not listen any more.
pub(crate) fn send(
    connection: impl AsFd,
    job: &Uid,
    token: &[u8; TOKEN],
    volume: &[BorrowedFd<'_>],
) -> std::io::Result<()> {
    let message = format!("{job} {}\n", hex::encode(token));
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !ancillary.push(SendAncillaryMessage::ScmRights(volume)) {
        return Err(std::io::Error::other("too many descriptors"));
    }
    let sent = rustix::net::sendmsg(
        connection,
        &[IoSlice::new(message.as_bytes())],
        &mut ancillary,
        SendFlags::NOSIGNAL,
    )?;
    // A new socket takes so little whole.
    if sent == message.len() { Ok(()) } else { Err(std::io::ErrorKind::WriteZero.into()) }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::UnixStream as Plain;

    use super::*;

    const UID: &str = "01234567-89ab-cdef-0123-456789abcdef";

    /// Knows one job; says what has changed.
    #[derive(Clone)]
    struct One(tokio::sync::mpsc::UnboundedSender<Uid>);

    impl Jobs for One {
        async fn token(&self, job: &Uid) -> Option<[u8; TOKEN]> {
            (job.as_str() == UID).then_some([7; TOKEN])
        }

        fn changed(&self, job: &Uid) {
            self.0.send(job.clone()).unwrap();
        }
    }

    fn uid() -> Uid {
        Uid::parse(UID.as_bytes()).unwrap()
    }

    struct Setup {
        folder: tempfile::TempDir,
        handover: Handover,
        changes: tokio::sync::mpsc::UnboundedReceiver<Uid>,
    }

    async fn listening() -> Setup {
        let folder = tempfile::tempdir().unwrap();
        let handover = Handover::default();
        let (sender, changes) = tokio::sync::mpsc::unbounded_channel();
        let path = folder.path().to_owned();
        tokio::spawn(handover.clone().listen(Box::leak(Box::new(path)), One(sender)));
        // It is there before somebody listens.
        while Plain::connect(folder.path().join(SOCKET)).is_err() {
            tokio::task::yield_now().await;
        }
        Setup { folder, handover, changes }
    }

    impl Setup {
        fn connect(&self) -> Plain {
            Plain::connect(self.folder.path().join(SOCKET)).unwrap()
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_file_is_handed_over_and_given_back() {
        let mut setup = listening().await;
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"volume").unwrap();
        let mut pod = setup.connect();
        send(&pod, &uid(), &[7; TOKEN], &[file.as_fd()]).unwrap();
        assert_eq!(setup.changes.recv().await, Some(uid()));
        let held = setup.handover.held(&uid()).unwrap();
        let mut gone = held.gone();
        let mine = std::fs::File::from(held.descriptors().unwrap().remove(0));
        let mut text = [0; 6];
        std::os::unix::fs::FileExt::read_exact_at(&mine, &mut text, 0).unwrap();
        assert_eq!(&text, b"volume");
        assert!(!*gone.borrow());

        held.release();
        let mut said = Vec::new();
        pod.read_to_end(&mut said).unwrap();
        assert_eq!(said, DONE);
        gone.wait_for(|gone| *gone).await.unwrap();
        assert_eq!(setup.changes.recv().await, Some(uid()));
        assert!(setup.handover.held(&uid()).is_none());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_pod_that_goes_is_noticed_and_the_next_one_counts() {
        let mut setup = listening().await;
        let file = tempfile::tempfile().unwrap();
        let first = setup.connect();
        send(&first, &uid(), &[7; TOKEN], &[file.as_fd()]).unwrap();
        setup.changes.recv().await;
        let mut gone = setup.handover.held(&uid()).unwrap().gone();
        let second = setup.connect();
        send(&second, &uid(), &[7; TOKEN], &[file.as_fd(), file.as_fd()]).unwrap();
        setup.changes.recv().await;
        drop(first);
        gone.wait_for(|gone| *gone).await.unwrap();
        setup.changes.recv().await;
        assert_eq!(setup.handover.held(&uid()).unwrap().descriptors().unwrap().len(), 2);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn strangers_are_refused() {
        let setup = listening().await;
        let file = tempfile::tempfile().unwrap();
        let refused = |mut pod: Plain| {
            let mut said = Vec::new();
            pod.read_to_end(&mut said).unwrap();
            assert!(said.is_empty());
        };
        // Another token, another job, no descriptor, something else.
        let pod = setup.connect();
        send(&pod, &uid(), &[8; TOKEN], &[file.as_fd()]).unwrap();
        refused(pod);
        let pod = setup.connect();
        let other = Uid::parse(b"11111111-89ab-cdef-0123-456789abcdef").unwrap();
        send(&pod, &other, &[7; TOKEN], &[file.as_fd()]).unwrap();
        refused(pod);
        let pod = setup.connect();
        (&pod).write_all(format!("{UID} {}\n", hex::encode([7; TOKEN])).as_bytes()).unwrap();
        refused(pod);
        let pod = setup.connect();
        (&pod).write_all(&[b'x'; MESSAGE]).unwrap();
        refused(pod);
        let pod = setup.connect();
        (&pod).write_all(b"short").unwrap();
        pod.shutdown(std::net::Shutdown::Write).unwrap();
        refused(pod);
        assert!(setup.handover.held(&uid()).is_none());
    }
}

//! Bodies on their way through: counted, slowed down, cut off, with a bit flipped. Never collected.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hyper::body::{Body, Frame, SizeHint};
use tokio::time::{Instant, Sleep};

/// What can go wrong in a body.
pub(super) type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// A rate that several bodies share.
#[derive(Debug)]
pub(super) struct Limiter {
    bytes_per_second: u64,
    free_at: Mutex<Option<Instant>>,
}

impl Limiter {
    pub(super) fn new(bytes_per_second: u64) -> Self {
        Self { bytes_per_second, free_at: Mutex::new(None) }
    }

    /// Takes `bytes` of the rate; they have passed at the returned time.
    fn take(&self, bytes: u64) -> Instant {
        let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let start = free_at.map_or(now, |at| at.max(now));
        // Nanoseconds of one frame: far below 2^64 for any rate of a byte per second or more.
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(self.bytes_per_second);
        let end = start + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        *free_at = Some(end);
        end
    }
}

/// What happens to a body as it passes.
#[derive(Default)]
pub(super) struct Treatment {
    /// Counts the bytes that passed.
    pub(super) count: Arc<AtomicU64>,
    /// Fails after that many bytes.
    pub(super) cut: Option<u64>,
    /// Flips the lowest bit of that byte.
    pub(super) flip: Option<u64>,
    /// Every one is obeyed.
    pub(super) limiters: Vec<Arc<Limiter>>,
}

/// A body under treatment.
pub(super) struct Treated<B> {
    inner: B,
    treatment: Treatment,
    passed: u64,
    flushed: bool,
    waiting: Option<(Pin<Box<Sleep>>, Bytes)>,
}

impl<B> Treated<B> {
    pub(super) fn new(inner: B, treatment: Treatment) -> Self {
        Self { inner, treatment, passed: 0, flushed: false, waiting: None }
    }

    /// Counts and changes one piece of data. Nothing is left of it when it lies behind the cut.
    fn treat(&mut self, mut data: Bytes) -> Bytes {
        if let Some(cut) = self.treatment.cut {
            let left = usize::try_from(cut - self.passed).unwrap_or(usize::MAX);
            data.truncate(left.min(data.len()));
        }
        let length = data.len() as u64;
        if let Some(at) = self.treatment.flip
            && (self.passed..self.passed + length).contains(&at)
        {
            let mut changed = BytesMut::from(data.as_ref());
            changed[usize::try_from(at - self.passed).unwrap_or(0)] ^= 1;
            data = changed.freeze();
        }
        self.passed += length;
        self.treatment.count.fetch_add(length, Ordering::SeqCst);
        data
    }
}

impl<B> Body for Treated<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BodyError>,
{
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        if let Some((sleep, _)) = &mut this.waiting {
            ready!(sleep.as_mut().poll(cx));
        }
        if let Some((_, data)) = this.waiting.take() {
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        if this.treatment.cut == Some(this.passed) {
            // What came before the cut is flushed while the body is pending; an error would throw it away.
            if !std::mem::replace(&mut this.flushed, true) {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            return Poll::Ready(Some(Err("cut off by a fault rule".into())));
        }
        let frame = match ready!(Pin::new(&mut this.inner).poll_frame(cx)) {
            None => return Poll::Ready(None),
            Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
            Some(Ok(frame)) => frame,
        };
        let data = match frame.into_data() {
            Ok(data) => this.treat(data),
            Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
        };
        let Some(until) = this.treatment.limiters.iter().map(|l| l.take(data.len() as u64)).max() else {
            return Poll::Ready(Some(Ok(Frame::data(data))));
        };
        this.waiting = Some((Box::pin(tokio::time::sleep_until(until)), data));
        Pin::new(this).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.waiting.is_none() && self.treatment.cut != Some(self.passed) && self.inner.is_end_stream()
    }

    // A cut body still promises its whole length: that is the point of the fault.
    fn size_hint(&self) -> SizeHint {
        let mut hint = self.inner.size_hint();
        if let Some((_, data)) = &self.waiting {
            let more = data.len() as u64;
            if let Some(upper) = hint.upper() {
                hint.set_upper(upper + more);
            }
            hint.set_lower(hint.lower() + more);
        }
        hint
    }
}

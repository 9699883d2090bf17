//! Sending a rope without copying it, no faster than its rate allows.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use aws_sdk_s3::primitives::{ByteStream, SdkBody};
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::time::{Sleep, sleep};

use super::deadline::Activity;
use crate::limits::{Rate, Turn};
use crate::store::Body;

/// Largest piece handed over at once, in bytes, so that progress shows.
const PIECE: usize = 256 << 10;

/// The body as the SDK wants it. Can be sent again from the start: slices are counted references.
pub(super) fn stream(body: &Body, activity: &Arc<Activity>) -> ByteStream {
    let (body, activity) = (body.clone(), activity.clone());
    ByteStream::new(SdkBody::retryable(move || {
        SdkBody::from_body_1_x(Rope {
            slices: body.slices().to_vec().into_iter(),
            front: Bytes::new(),
            left: body.len(),
            rate: body.rate().cloned(),
            turn: None,
            wait: None,
            activity: activity.clone(),
        })
    }))
}

struct Rope {
    slices: std::vec::IntoIter<Bytes>,
    /// What is left of the present slice.
    front: Bytes,
    /// Bytes not sent yet, `front` included.
    left: u64,
    rate: Option<Rate>,
    /// For the next piece.
    turn: Option<Turn>,
    wait: Option<Pin<Box<Sleep>>>,
    activity: Arc<Activity>,
}

impl http_body::Body for Rope {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = &mut *self;
        while this.front.is_empty() {
            match this.slices.next() {
                Some(slice) => this.front = slice,
                None => return Poll::Ready(None),
            }
        }
        let mut len = this.front.len().min(PIECE);
        if let Some(rate) = &this.rate {
            let turn = this.turn.get_or_insert_with(|| rate.turn(len as u64));
            loop {
                if let Some(wait) = &mut this.wait {
                    ready!(wait.as_mut().poll(cx));
                    this.wait = None;
                }
                match turn.take() {
                    Ok(piece) => {
                        len = usize::try_from(piece).unwrap_or(len).min(len);
                        break;
                    }
                    Err(pause) => {
                        this.activity.paused(pause);
                        this.wait = Some(Box::pin(sleep(pause)));
                    }
                }
            }
            this.turn = None;
        }
        let piece = this.front.split_to(len);
        this.left -= piece.len() as u64;
        this.activity.moved();
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    fn rope() -> Body {
        [&b"abc"[..], b"", b"defgh", b"i"].into_iter().map(Bytes::from_static).collect()
    }

    #[tokio::test]
    async fn sends_slices_as_they_are() {
        let activity = Arc::new(Activity::default());
        let body = rope();
        let stream = stream(&body, &activity);
        assert_eq!(stream.size_hint(), (9, Some(9)));
        assert_eq!(stream.into_inner().content_length(), Some(9));
        let mut stream = super::stream(&body, &activity);
        let first = stream.next().await.unwrap().unwrap();
        assert_eq!(first.as_ptr(), body.slices()[0].as_ptr(), "not copied");
        assert_eq!(stream.collect().await.unwrap().into_bytes().as_ref(), b"defghi");
    }

    #[tokio::test]
    async fn waits_for_its_turn_and_says_so() {
        let activity = Arc::new(Activity::default());
        let body = rope().paced(Rate::new(20));
        let start = Instant::now();
        let all = stream(&body, &activity).collect().await.unwrap().into_bytes();
        assert_eq!(all.as_ref(), b"abcdefghi");
        assert!(start.elapsed() > Duration::from_millis(300));
        assert!(activity.pauses() > Duration::from_millis(300));
    }
}

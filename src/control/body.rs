//! What an answer's body is made of: one piece, lines as they come, or a file's bytes.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Body, Frame, SizeHint};
use tokio::sync::mpsc;

use super::wire::UpkeepLine;

/// Bytes of a file on their way to a client.
#[derive(Debug)]
pub struct Reading {
    /// How many there will be.
    pub bytes: u64,
    /// They, piece by piece. If it ends before them all, it failed; dropped, it stops.
    pub pieces: mpsc::Receiver<Bytes>,
}

/// The body of an answer.
pub(super) enum Answer {
    /// There at once.
    Whole(Full<Bytes>),
    /// One JSON value a line.
    Lines(mpsc::Receiver<UpkeepLine>),
    /// As many bytes as its head says, or else the connection is closed.
    Pieces(Reading),
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.get_mut() {
            Answer::Whole(whole) => Pin::new(whole).poll_frame(context),
            Answer::Lines(lines) => lines.poll_recv(context).map(|line| {
                let mut text = serde_json::to_vec(&line?).ok()?;
                text.push(b'\n');
                Some(Ok(Frame::data(Bytes::from(text))))
            }),
            Answer::Pieces(reading) => {
                reading.pieces.poll_recv(context).map(|piece| Some(Ok(Frame::data(piece?))))
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Answer::Whole(whole) => whole.size_hint(),
            Answer::Lines(_) => SizeHint::default(),
            Answer::Pieces(reading) => SizeHint::with_exact(reading.bytes),
        }
    }
}

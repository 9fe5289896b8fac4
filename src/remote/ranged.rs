//! The range of an object, as it is asked for and cut from an answer.
//!
//! An answer is checked before a byte of it is passed on: the range must be the
//! one asked for. A store that ignores `Range` sends the whole object, of which
//! the range is cut.

use std::ops::Range;

use bytes::Bytes;
use futures::stream::{BoxStream, Stream};
use futures::{StreamExt, TryStreamExt};

use super::answer::{believable, lacks};
use super::error::innermost;
use super::http::BoxError;
use super::{ErrorKind, RemoteError};

/// Most bytes read and thrown away to reach a range in an answer that is the
/// whole object. Past this, a store without ranges cannot be mounted in earnest.
const MAX_SKIPPED_BYTES: u64 = 8 << 20;

/// The value of a `Range` header.
///
/// # Errors
/// [`ErrorKind::Invalid`] for an empty range, which HTTP cannot name.
pub fn header(range: &Range<u64>, what: &str) -> Result<String, RemoteError> {
    if range.is_empty() {
        let message = format!("{what}: an empty range cannot be asked for");
        return Err(RemoteError::new(ErrorKind::Invalid, message));
    }
    Ok(format!("bytes={}-{}", range.start, range.end - 1))
}

/// Which bytes of an object an answer holds.
#[derive(Debug, PartialEq, Eq)]
pub struct Sent {
    /// Position of the first one.
    start: u64,
    /// The whole object's size in bytes.
    pub total_size: u64,
}

impl Sent {
    /// From `Content-Range`, or from the length of an answer without one, which
    /// is the whole object.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] if neither tells, or what they tell cannot be.
    pub fn of(range: Option<&str>, length: Option<u64>, what: &str) -> Result<Sent, RemoteError> {
        let Some(text) = range else {
            let total_size =
                length.and_then(believable).ok_or_else(|| lacks(what, "believable size"))?;
            return Ok(Sent { start: 0, total_size });
        };
        let parsed = text.strip_prefix("bytes ").and_then(|rest| {
            let (bytes, total) = rest.split_once('/')?;
            let (start, _) = bytes.split_once('-')?;
            let total_size = believable(total.trim().parse().ok()?)?;
            let sent = Sent { start: start.trim().parse().ok()?, total_size };
            (sent.start < total_size).then_some(sent)
        });
        parsed.ok_or_else(|| lacks(what, "usable Content-Range"))
    }

    /// The bytes `range` of the object, out of the answer's `body`. May break off
    /// with [`ErrorKind::Transient`].
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] if the body does not begin where the range does,
    /// or so far before it that reading up to there is no use.
    pub fn cut<E: Into<BoxError>>(
        &self,
        body: impl Stream<Item = Result<Bytes, E>> + Send + 'static,
        range: &Range<u64>,
        what: String,
    ) -> Result<BoxStream<'static, Result<Bytes, RemoteError>>, RemoteError> {
        let skipped = self.skip_to(range, &what)?;
        let pieces = body.map_err(move |error| {
            let reason = innermost(&*error.into());
            RemoteError::new(ErrorKind::Transient, format!("{what}: the body broke off: {reason}"))
        });
        Ok(clip(pieces, skipped, range.end - range.start).boxed())
    }

    /// How many bytes come before `range`.
    fn skip_to(&self, range: &Range<u64>, what: &str) -> Result<u64, RemoteError> {
        match range.start.checked_sub(self.start) {
            Some(skipped) if skipped <= MAX_SKIPPED_BYTES => Ok(skipped),
            _ => {
                let message = format!(
                    "{what}: asked for bytes from {}, the store sent them from {}; it does not \
                     support ranges",
                    range.start, self.start
                );
                Err(RemoteError::new(ErrorKind::Invalid, message))
            }
        }
    }
}

/// Leaves out the first `skip` bytes of a body and all after the next `take`.
fn clip(
    body: impl Stream<Item = Result<Bytes, RemoteError>>,
    mut skip: u64,
    mut take: u64,
) -> impl Stream<Item = Result<Bytes, RemoteError>> {
    body.map_ok(move |mut piece| {
        let skipped = skip.min(piece.len() as u64);
        skip -= skipped;
        let mut piece = piece.split_off(skipped as usize);
        piece.truncate(take.min(piece.len() as u64) as usize);
        take -= piece.len() as u64;
        piece
    })
}

#[cfg(test)]
mod tests {
    use futures::stream;

    use super::*;
    use crate::fuzz::{Effort, Target, fuzz_tests};
    use crate::remote::OBJECT_BYTES_MAX;

    #[test]
    fn an_answer_tells_which_bytes_it_holds() {
        let sent = |range, length| Sent::of(range, length, "GET").map_err(|error| error.kind);
        assert_eq!(sent(Some("bytes 5-9/20"), Some(5)), Ok(Sent { start: 5, total_size: 20 }));
        assert_eq!(sent(None, Some(20)), Ok(Sent { start: 0, total_size: 20 }));
        for range in ["bytes 5-9/*", "bytes */20", "5-9/20", ""] {
            assert_eq!(sent(Some(range), Some(5)), Err(ErrorKind::Invalid), "{range}");
        }
        assert_eq!(sent(None, Some(u64::MAX)), Err(ErrorKind::Invalid));
        let whole = Sent { start: 0, total_size: 1 << 40 };
        assert_eq!(whole.skip_to(&(7..9), "GET"), Ok(7));
        assert!(whole.skip_to(&(1 << 30..1 << 31), "GET").is_err());
        assert!(Sent { start: 8, total_size: 20 }.skip_to(&(7..9), "GET").is_err());
    }

    #[test]
    fn a_range_is_named_by_its_last_byte() {
        assert_eq!(header(&(5..10), "GET").unwrap(), "bytes=5-9");
        assert_eq!(header(&(5..5), "GET").unwrap_err().kind, ErrorKind::Invalid);
    }

    #[tokio::test]
    async fn a_range_is_cut_from_a_larger_body() {
        let pieces = ["abc", "defg", "h"].map(|text| Ok(Bytes::from_static(text.as_bytes())));
        let body = stream::iter(pieces as [Result<Bytes, std::io::Error>; 3]);
        let sent = Sent { start: 10, total_size: 20 };
        let cut = sent.cut(body, &(12..16), "GET".to_owned()).unwrap();
        let cut: Vec<Bytes> = cut.map(Result::unwrap).collect().await;
        assert_eq!(cut.concat(), b"cdef");
    }

    fuzz_tests!(content_ranges);

    fn content_ranges(effort: Effort) {
        let target = Target {
            name: "Content-Range",
            corpus: ["bytes 5-9/20", "bytes 0-0/1", "bytes 5-9/*"].map(Vec::from).to_vec(),
            words: &["bytes ", "-", "/", "*", " ", "+"],
            inputs: 20_000,
            memory: (4 << 10, 16),
        };
        target.run(effort, |input| {
            match Sent::of(Some(&String::from_utf8_lossy(input)), Some(7), "GET") {
                Ok(sent) => {
                    assert!(sent.start < sent.total_size && sent.total_size <= OBJECT_BYTES_MAX);
                    let _ = sent.skip_to(&(5..9), "GET");
                    true
                }
                Err(error) => {
                    assert!(!error.message.contains(char::is_control), "{:?}", error.message);
                    false
                }
            }
        });
    }
}

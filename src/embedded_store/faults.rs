//! Misbehaviour to order, for tests of those who must bear it.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::Op;

/// What goes wrong with one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// An error answer, such as 503 with `Retry-After`.
    Status {
        /// HTTP status.
        status: u16,
        /// S3 error code, such as `SlowDown`.
        code: String,
        /// `Retry-After`, in whole seconds.
        retry_after_s: Option<u64>,
    },
    /// The answer comes this much later.
    Delay(Duration),
    /// No answer, ever; the connection stays open.
    NoAnswer,
    /// After so many bytes of body the connection is reset.
    ResetAfter(u64),
    /// After so many bytes of body the connection ends, short of the
    /// `Content-Length` that was announced.
    CloseAfter(u64),
    /// After so many bytes of body nothing more comes; the connection stays open.
    StallAfter(u64),
    /// A body, and a `Content-Length`, of at most so many bytes, though
    /// status and `Content-Range` promise all.
    ShortBody(u64),
    /// An `ETag` that is not the object's, and no heed of `If-Match`.
    WrongEtag,
    /// 200 and the whole object, whatever range was asked for.
    IgnoreRange,
    /// The byte at this place of the body is inverted.
    FlipByte(u64),
}

/// When a fault applies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FaultRule {
    /// Requests of this kind.
    pub op: Op,
    /// Only keys (or listed prefixes) that contain this; empty for any.
    pub key_contains: String,
    /// Matching requests to let pass first.
    pub skip: u64,
    /// Matching requests to spoil after those; `u64::MAX` for all.
    pub times: u64,
    /// What goes wrong.
    pub fault: Fault,
}

impl FaultRule {
    /// The next `times` requests of kind `op`, whatever their key.
    pub fn next(times: u64, op: Op, fault: Fault) -> Self {
        FaultRule { op, key_contains: String::new(), skip: 0, times, fault }
    }
}

/// The rules in force.
#[derive(Debug, Default)]
pub(super) struct Faults(Mutex<Vec<FaultRule>>);

impl Faults {
    pub(super) fn set(&self, rules: Vec<FaultRule>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = rules;
    }

    /// The fault for a request, which is used up by it.
    pub(super) fn take(&self, op: Op, key: &str) -> Option<Fault> {
        let mut rules = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let matching = rules
            .iter_mut()
            .filter(|rule| rule.op == op && rule.times > 0 && key.contains(&rule.key_contains));
        for rule in matching {
            if rule.skip > 0 {
                rule.skip -= 1;
                continue;
            }
            if rule.times != u64::MAX {
                rule.times -= 1;
            }
            return Some(rule.fault.clone());
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_skip_then_apply_then_end() {
        let faults = Faults::default();
        let rule = FaultRule::next(1, Op::Get, Fault::WrongEtag);
        faults.set(vec![
            FaultRule { skip: 1, key_contains: "b".into(), ..rule },
            FaultRule::next(2, Op::Get, Fault::IgnoreRange),
        ]);
        assert_eq!(faults.take(Op::Head, "b"), None);
        assert_eq!(faults.take(Op::Get, "b"), Some(Fault::IgnoreRange));
        assert_eq!(faults.take(Op::Get, "abc"), Some(Fault::WrongEtag));
        assert_eq!(faults.take(Op::Get, "b"), Some(Fault::IgnoreRange));
        assert_eq!(faults.take(Op::Get, "b"), None);
    }
}

//! Placeholder of the policy.
use super::record::NodeId;

/// Placeholder.
#[derive(Debug)]
pub struct Recency;

#[allow(missing_docs, clippy::unused_self, unused_variables)]
impl Recency {
    pub fn new(budget_bytes: u64) -> Self {
        Recency
    }
    pub fn set_budget(&mut self, budget_bytes: u64) {}
    pub fn touch(&mut self, node: NodeId, bytes: u64) {}
    pub fn set_held(&mut self, node: NodeId, held: bool) {}
    pub fn dead_age(&self) -> Option<u64> {
        None
    }
    pub fn victim(&mut self, force: bool, in_use: impl FnMut(NodeId) -> bool) -> Option<NodeId> {
        None
    }
    pub fn untouched_is_dead(&self) -> bool {
        false
    }
    pub fn was_touched(&self, node: NodeId) -> bool {
        false
    }
}

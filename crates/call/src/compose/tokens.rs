//! The signals that end a tree of calls.

use tokio_util::sync::CancellationToken;

/// The two signals of one call in a tree.
///
/// The two are the same, down to the first call that continues running when its parent is aborted: that call has a
/// `run` of its own, so that it finishes, and still its parent's `gate`, so that nothing starts below it any more.
#[derive(Clone, Debug)]
pub(crate) struct CancellationTokens {
    gate: CancellationToken,
    own_run: Option<CancellationToken>,
}

impl CancellationTokens {
    /// The tokens of the root of a tree.
    pub(crate) fn root(token: &CancellationToken) -> Self {
        Self {
            gate: token.clone(),
            own_run: None,
        }
    }

    /// The tokens of a call that is aborted with its parent.
    pub(crate) fn dependent(&self) -> Self {
        Self {
            gate: self.gate.child_token(),
            own_run: self.own_run.as_ref().map(CancellationToken::child_token),
        }
    }

    /// The tokens of a call that outlives its parent.
    pub(crate) fn detached(&self) -> Self {
        Self {
            gate: self.gate.child_token(),
            own_run: Some(CancellationToken::new()),
        }
    }

    /// Cancelled when nothing may start below this call any more.
    pub(crate) fn gate(&self) -> &CancellationToken {
        &self.gate
    }

    /// Cancelled when this call must stop.
    pub(crate) fn run(&self) -> &CancellationToken {
        self.own_run.as_ref().unwrap_or(&self.gate)
    }

    /// Ends this call and everything that depends on it.
    pub(crate) fn end(&self) {
        self.gate.cancel();
        self.run().cancel();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_abort_stops_dependents_and_closes_the_gate_of_the_others() {
        let token = CancellationToken::new();
        let root = CancellationTokens::root(&token);
        let dependent = root.dependent();
        let detached = dependent.detached();
        let below = detached.dependent();
        token.cancel();
        assert!(dependent.run().is_cancelled() && dependent.gate().is_cancelled());
        assert!(!detached.run().is_cancelled() && detached.gate().is_cancelled());
        assert!(!below.run().is_cancelled() && below.gate().is_cancelled());
        detached.end();
        assert!(below.run().is_cancelled());
    }

    #[test]
    fn an_end_below_leaves_the_rest_alone() {
        let root = CancellationTokens::root(&CancellationToken::new());
        let (one, other) = (root.dependent(), root.dependent());
        one.end();
        assert!(one.run().is_cancelled());
        assert!(!other.run().is_cancelled() && !root.gate().is_cancelled());
    }
}

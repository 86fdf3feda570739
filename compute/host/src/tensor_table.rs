//! The tensors of one identity: handles, leases and quota.

use std::collections::HashMap;
use std::fmt;
use std::time::{Duration, Instant};

use alknet_call::Caller;
use data_encoding::HEXLOWER;

use crate::budget::ByteTimeBudget;
use crate::error::{Error, Result};
use crate::limits::HANDLES_MAX;
use crate::tensor::TensorSpec;

/// Random bytes of a handle's name. The name is no secret, but a caller must not guess another caller's
/// handle.
const NAME_BYTES: usize = 16;

/// The handles, and the numbers of buffers without a handle.
#[derive(Debug)]
pub(crate) struct TensorTable {
    handles: HashMap<String, TensorHandle>,
    /// The number of the newest buffer.
    number: u64,
    garbage: Vec<u64>,
    budget: ByteTimeBudget,
}

/// A tensor with a handle.
#[derive(Debug)]
struct TensorHandle {
    number: u64,
    kind: TensorSpec,
    until: Instant,
    user: HandleUser,
}

/// The connection that used it last.
pub(crate) struct HandleUser(Option<Caller>);

impl HandleUser {
    pub(crate) const fn new(caller: Caller) -> Self {
        Self(Some(caller))
    }

    fn is_gone(&self) -> bool {
        self.0.as_ref().is_none_or(Caller::is_closed)
    }
}

impl fmt::Debug for HandleUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HandleUser(gone: {})", self.is_gone())
    }
}

impl TensorTable {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            handles: HashMap::new(),
            number: 0,
            garbage: Vec::new(),
            budget: ByteTimeBudget::new(now),
        }
    }

    /// A number that no buffer has had.
    pub(crate) const fn number(&mut self) -> u64 {
        self.number += 1;
        self.number
    }

    /// Checks the room for `more` further tensors of `bytes` bytes together.
    pub(crate) fn check_quota(
        &mut self,
        more: usize,
        bytes: u64,
        most: u64,
        now: Instant,
    ) -> Result<()> {
        self.settle(now);
        if self.handles.len() + more > HANDLES_MAX {
            return Err(Error::Quota(format!("at most {HANDLES_MAX} handles")));
        }
        if self.bytes().saturating_add(bytes) > most {
            return Err(Error::Quota(format!(
                "all tensors together may have {most} bytes"
            )));
        }
        if self.budget.is_spent() {
            let why = "this identity has kept too much for too long; what it keeps for less time \
                       is given back over a day";
            return Err(Error::Quota(why.to_owned()));
        }
        Ok(())
    }

    /// Makes a handle for a buffer.
    pub(crate) fn make_handle(
        &mut self,
        number: u64,
        kind: TensorSpec,
        user: HandleUser,
        until: Instant,
    ) -> Result<String> {
        self.settle(Instant::now());
        let mut name = [0; NAME_BYTES];
        // A failure of the kernel's random source must not lead to a guessable name.
        getrandom::fill(&mut name).map_err(|error| Error::Internal(error.to_string()))?;
        let name = HEXLOWER.encode(&name);
        let handle = TensorHandle {
            number,
            kind,
            until,
            user,
        };
        self.handles.insert(name.clone(), handle);
        Ok(name)
    }

    /// Number and kind of a handle's tensor. Restarts the handle's lease.
    pub(crate) fn find(
        &mut self,
        name: &str,
        user: HandleUser,
        until: Instant,
    ) -> Result<(u64, TensorSpec)> {
        let handle = self.handles.get_mut(name).ok_or(Error::NoHandle)?;
        handle.until = until;
        handle.user = user;
        Ok((handle.number, handle.kind.clone()))
    }

    /// Ends a handle.
    pub(crate) fn drop_handle(&mut self, name: &str) -> Result<()> {
        self.settle(Instant::now());
        let handle = self.handles.remove(name).ok_or(Error::NoHandle)?;
        self.garbage.push(handle.number);
        Ok(())
    }

    /// Marks buffers that no handle refers to as garbage.
    pub(crate) fn discard(&mut self, numbers: impl IntoIterator<Item = u64>) {
        self.garbage.extend(numbers);
    }

    /// The buffers that the worker may drop.
    pub(crate) fn garbage(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.garbage)
    }

    pub(crate) const fn has_garbage(&self) -> bool {
        !self.garbage.is_empty()
    }

    /// Removes all handles, because the worker is gone with their tensors.
    pub(crate) fn lose_all(&mut self) {
        self.settle(Instant::now());
        self.handles.clear();
        self.garbage.clear();
    }

    /// Ends expired leases. Once the connection that used a handle last has ended, at most `orphan_lease` is left of
    /// its lease: the identity may still use the handle over another connection.
    pub(crate) fn expire(&mut self, now: Instant, orphan_lease: Duration) {
        self.settle(now);
        for handle in self.handles.values_mut() {
            // The lease is shortened once; a handle that lost its connection before keeps the rest of its lease.
            if handle.user.0.is_some() && handle.user.is_gone() {
                handle.user = HandleUser(None);
                handle.until = handle.until.min(now + orphan_lease);
            }
        }
        let garbage = &mut self.garbage;
        self.handles.retain(|_, handle| {
            let lives = handle.until > now;
            if !lives {
                garbage.push(handle.number);
            }
            lives
        });
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.handles.is_empty()
    }

    /// Whether the table can be dropped: it has no handles and a whole budget, so its identity gains nothing by a new
    /// table.
    pub(crate) fn is_settled(&mut self, now: Instant) -> bool {
        self.settle(now);
        self.is_empty() && self.budget.is_whole()
    }

    fn bytes(&self) -> u64 {
        self.handles
            .values()
            .map(|handle| handle.kind.bytes())
            .sum()
    }

    fn settle(&mut self, now: Instant) {
        let bytes = self.bytes();
        self.budget.settle(bytes, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(bytes: u64) -> TensorSpec {
        TensorSpec::from_parts("U8", vec![bytes]).expect("a tensor")
    }

    fn unknown_peer() -> HandleUser {
        HandleUser(None)
    }

    #[test]
    fn a_handle_lives_for_its_lease_after_its_last_use() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut tensor_table = TensorTable::new(start);
        let number = tensor_table.number();
        let name = tensor_table
            .make_handle(number, kind(3), unknown_peer(), at(60))
            .expect("kept");
        tensor_table.expire(at(59), Duration::ZERO);
        assert_eq!(
            tensor_table
                .find(&name, unknown_peer(), at(119))
                .expect("there"),
            (number, kind(3))
        );
        tensor_table.expire(at(118), Duration::ZERO);
        assert!(!tensor_table.is_empty() && !tensor_table.has_garbage());
        tensor_table.expire(at(119), Duration::ZERO);
        assert!(tensor_table.find(&name, unknown_peer(), at(200)).is_err());
        assert_eq!(tensor_table.garbage(), [number]);
    }

    #[test]
    fn there_is_room_up_to_the_limits() {
        let now = Instant::now();
        let mut tensor_table = TensorTable::new(now);
        tensor_table
            .make_handle(1, kind(10), unknown_peer(), now)
            .expect("kept");
        assert!(tensor_table.check_quota(1, 90, 100, now).is_ok());
        assert!(tensor_table.check_quota(1, 91, 100, now).is_err());
        assert!(tensor_table.check_quota(1, u64::MAX, 100, now).is_err());
        assert!(
            tensor_table
                .check_quota(HANDLES_MAX - 1, 0, 100, now)
                .is_ok()
        );
        assert!(tensor_table.check_quota(HANDLES_MAX, 0, 100, now).is_err());
    }

    #[test]
    fn names_are_not_guessed_and_what_ends_is_garbage() {
        let now = Instant::now();
        let mut tensor_table = TensorTable::new(now);
        let first = tensor_table
            .make_handle(1, kind(1), unknown_peer(), now)
            .expect("kept");
        let second = tensor_table
            .make_handle(2, kind(1), unknown_peer(), now)
            .expect("kept");
        assert!(first != second && first.len() == 2 * NAME_BYTES);
        tensor_table.drop_handle(&first).expect("there");
        assert!(matches!(
            tensor_table.drop_handle(&first),
            Err(Error::NoHandle)
        ));
        tensor_table.discard([7]);
        assert_eq!(tensor_table.garbage(), [1, 7]);
        tensor_table.lose_all();
        assert!(tensor_table.is_empty() && !tensor_table.has_garbage());
    }
}

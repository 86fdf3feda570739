//! The peer's requests in flight on one connection.

use std::hash::BuildHasher;
use std::sync::{Arc, Mutex};

use hashbrown::{DefaultHashBuilder, HashTable};

use crate::request::Request;
use crate::sync::lock;

/// The table of one connection.
#[derive(Default)]
pub(crate) struct Inbound(Mutex<Table>);

#[derive(Default)]
struct Table {
    requests: HashTable<Arc<Request>>,
    hasher: DefaultHashBuilder,
    subscriptions: usize,
}

impl Inbound {
    pub(crate) fn remember(&self, request: &Arc<Request>) {
        let mut table = lock(&self.0);
        let Table {
            requests,
            hasher,
            subscriptions,
        } = &mut *table;
        *subscriptions += usize::from(request.is_subscription());
        requests.insert_unique(
            hasher.hash_one(request.id()),
            Arc::clone(request),
            |request| hasher.hash_one(request.id()),
        );
    }

    pub(crate) fn forget(&self, request: &Arc<Request>) {
        self.take(request.id(), |found| Arc::ptr_eq(found, request));
    }

    fn take(&self, id: &str, which: impl Fn(&Arc<Request>) -> bool) -> Option<Arc<Request>> {
        let mut table = lock(&self.0);
        let hash = table.hasher.hash_one(id);
        let found = table
            .requests
            .find_entry(hash, |request| request.id() == id && which(request))
            .ok()?;
        let request = found.remove().0;
        table.subscriptions -= usize::from(request.is_subscription());
        Some(request)
    }

    /// Aborts the request of this id; `false` where there is none.
    pub(crate) fn abort(&self, id: &str) -> bool {
        let request = self.take(id, |_| true);
        if let Some(request) = &request {
            request.abort();
        }
        request.is_some()
    }

    /// Aborts every request that matches.
    pub(crate) fn abort_where(&self, which: impl Fn(&Request) -> bool) {
        if alknet_core::mutant_a(1037) {
            return;
        }
        let mut table = lock(&self.0);
        let gone: Vec<_> = table
            .requests
            .extract_if(|request| which(request))
            .collect();
        let subscriptions = gone.iter().filter(|r| r.is_subscription()).count();
        table.subscriptions -= subscriptions;
        drop(table);
        gone.iter().for_each(|request| request.abort());
    }

    /// The request of this id.
    pub(crate) fn find(&self, id: &str) -> Option<Arc<Request>> {
        let table = lock(&self.0);
        let hash = table.hasher.hash_one(id);
        table
            .requests
            .find(hash, |request| request.id() == id)
            .cloned()
    }

    pub(crate) fn is_empty(&self) -> bool {
        lock(&self.0).requests.is_empty()
    }

    /// How many there are, and how many subscriptions among them.
    pub(crate) fn counts(&self) -> (usize, usize) {
        let table = lock(&self.0);
        (table.requests.len(), table.subscriptions)
    }
}

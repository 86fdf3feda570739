//! The peer's requests in flight on one connection.

use std::hash::BuildHasher;
use std::sync::{Arc, Mutex};

use hashbrown::{DefaultHashBuilder, HashTable};

use crate::request::InboundRequest;
use crate::sync::lock;

/// The table of one connection.
#[derive(Default)]
pub(crate) struct Inbound(Mutex<InboundTable>);

#[derive(Default)]
struct InboundTable {
    requests: HashTable<Arc<InboundRequest>>,
    hasher: DefaultHashBuilder,
    subscriptions: usize,
    /// Requests for which the peer says how many events it takes.
    windowed: usize,
}

impl InboundTable {
    fn remove(&mut self, request: &InboundRequest) {
        self.subscriptions -= usize::from(request.is_subscription());
        self.windowed -= usize::from(request.credit.is_some());
    }
}

impl Inbound {
    pub(crate) fn remember(&self, request: &Arc<InboundRequest>) {
        let mut table = lock(&self.0);
        let InboundTable {
            requests,
            hasher,
            subscriptions,
            windowed,
        } = &mut *table;
        *subscriptions += usize::from(request.is_subscription());
        *windowed += usize::from(request.credit.is_some());
        requests.insert_unique(
            hasher.hash_one(request.id()),
            Arc::clone(request),
            |request| hasher.hash_one(request.id()),
        );
    }

    pub(crate) fn forget(&self, request: &Arc<InboundRequest>) {
        // After an abort the peer may have used the id again: that request stays.
        self.take(request.id(), |found| Arc::ptr_eq(found, request));
    }

    fn take(
        &self,
        id: &str,
        which: impl Fn(&Arc<InboundRequest>) -> bool,
    ) -> Option<Arc<InboundRequest>> {
        let mut table = lock(&self.0);
        let hash = table.hasher.hash_one(id);
        let found = table
            .requests
            .find_entry(hash, |request| request.id() == id && which(request))
            .ok()?;
        let request = found.remove().0;
        table.remove(&request);
        Some(request)
    }

    /// Aborts the request of this id; `false` where no such request is in flight.
    pub(crate) fn abort(&self, id: &str) -> bool {
        let request = self.take(id, |_| true);
        if let Some(request) = &request {
            request.abort();
        }
        request.is_some()
    }

    /// Aborts every request that matches.
    pub(crate) fn abort_where(&self, which: impl Fn(&InboundRequest) -> bool) {
        let mut table = lock(&self.0);
        // Collected first: an abort must not run under the lock of the table.
        let gone: Vec<_> = table
            .requests
            .extract_if(|request| which(request))
            .collect();
        gone.iter().for_each(|request| table.remove(request));
        // An abort runs code of the request, which may use the table.
        drop(table);
        gone.iter().for_each(|request| request.abort());
    }

    /// The request of this id.
    pub(crate) fn find(&self, id: &str) -> Option<Arc<InboundRequest>> {
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

    /// Whether there is a request for which the peer says how many events it takes. It may say so on any stream.
    pub(crate) fn is_windowed(&self) -> bool {
        lock(&self.0).windowed > 0
    }

    /// The number of requests, and of the subscriptions among them.
    pub(crate) fn counts(&self) -> (usize, usize) {
        let table = lock(&self.0);
        (table.requests.len(), table.subscriptions)
    }
}

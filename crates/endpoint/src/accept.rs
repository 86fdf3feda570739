//! The way of a connection from its first packet to the finished handshake.

pub(crate) mod quic;
pub(crate) mod tcp;

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use alknet_tls::PeerProof;
use rustls::pki_types::CertificateDer;
use tokio::sync::{oneshot, watch};
use tokio::task::AbortHandle;
use tokio::time::timeout;

use crate::admission::{AdmissionLimit, HandshakeId};
use crate::metrics::HandshakeRefusal;
use crate::serve::EndpointShared;

/// The sending end of a health probe: the accept loop that receives it proves, by answering, that it still runs.
pub(crate) type Probe = oneshot::Sender<()>;

/// The handshakes under way, each with the handle by which the node ends it for a newer one.
pub(crate) type HandshakeTasks = Mutex<HashMap<HandshakeId, AbortHandle>>;

/// One handshake under way. Dropping it takes the handshake out of the table and out of admission's counts.
pub(crate) struct Handshake {
    shared: Arc<EndpointShared>,
    ticket: HandshakeId,
}

impl Handshake {
    pub(crate) fn shared(&self) -> &Arc<EndpointShared> {
        &self.shared
    }
}

impl Drop for Handshake {
    fn drop(&mut self) {
        self.shared.handshakes().remove(&self.ticket);
        self.shared.admission().finish(self.ticket);
    }
}

impl EndpointShared {
    fn handshakes(&self) -> MutexGuard<'_, HashMap<HandshakeId, AbortHandle>> {
        // A panic of a task that held the lock leaves the table whole: each change of it is one call.
        self.handshakes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the handshake `ticket` and all that follows it in one task. The handshake `evict` is ended first.
    fn start_handshake<F>(
        self: &Arc<Self>,
        ticket: HandshakeId,
        evict: Option<HandshakeId>,
        run: impl FnOnce(Handshake) -> F,
    ) where
        F: Future<Output = ()> + Send + 'static,
    {
        // The handshake may have finished since admission chose it: then it is no longer in the table, and is served.
        if evict.is_some_and(|evict| abort(&mut self.handshakes(), evict)) {
            self.meters.hit(AdmissionLimit::Handshakes);
            self.totals.handshakes_evicted.add();
        }
        let shared = Arc::clone(self);
        let work = run(Handshake { shared, ticket });
        // The lock is held until the handle is in the table: otherwise the task could end first, and its handle would
        // stay in the table for ever.
        let mut handshakes = self.handshakes();
        let task = tokio::spawn(work);
        handshakes.insert(ticket, task.abort_handle());
    }
}

/// Ends a handshake that is still under way, and returns whether there was one. The caller holds the table's lock: a
/// task that has taken itself out of the table is served, and is not ended afterwards.
fn abort(handshakes: &mut HashMap<HandshakeId, AbortHandle>, ticket: HandshakeId) -> bool {
    let handle = handshakes.remove(&ticket);
    handle.is_some_and(|handle| {
        handle.abort();
        true
    })
}

/// Resolves once the node drains.
pub(crate) async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error means that the server is gone, which is a stop as well.
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Runs a handshake within its time limit, ends it when the node drains, and counts its result.
async fn bounded<T>(
    shared: &EndpointShared,
    handshake: impl Future<Output = io::Result<T>>,
) -> Option<T> {
    let mut stop = shared.stop.subscribe();
    let totals = &shared.totals;
    let began = Instant::now();
    let result = tokio::select! {
        // A node that drains serves nothing new, even where the handshake is done at the same moment.
        biased;
        () = stopped(&mut stop) => return None,
        result = timeout(shared.limits.handshake_timeout, handshake) => result,
    };
    match result {
        Ok(Ok(done)) => {
            totals.handshakes_ok.add();
            shared.meters.handshake(began.elapsed());
            Some(done)
        }
        Ok(Err(error)) => {
            // The code that refused the handshake has counted it already: a second count here would make the sum of
            // all results too high.
            let refused = error
                .get_ref()
                .is_some_and(|inner| inner.is::<HandshakeRefusal>());
            if !refused && !shared.meters.alert(&error) {
                totals.handshakes_failed.add();
            }
            tracing::debug!("handshake failed: {error}");
            None
        }
        Err(_) => {
            totals.handshakes_timeout.add();
            None
        }
    }
}

/// The key in a certificate chain. The TLS verifier has accepted the chain before, so that its key can be read.
fn proof(chain: &[CertificateDer<'_>]) -> Option<PeerProof> {
    PeerProof::from_certificate(chain.first()?).ok()
}

/// The address of a peer. A socket for both families gives an IPv4 peer as a mapped address, which becomes IPv4 here.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    // A mapped address (RFC 4291 section 2.5.5.2) would hide from rules and logs that the peer uses IPv4.
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A flood evicts handshakes, one of them in the moment in which it is done.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_finished_handshake_is_not_ended_for_a_newer_one() {
        let table: Arc<HandshakeTasks> = Arc::default();
        for number in 0..5000_u64 {
            let ticket = HandshakeId::from_number(number);
            let own = Arc::clone(&table);
            let work = async move {
                let was_there = own.lock().expect("no panic").remove(&ticket).is_some();
                tokio::task::yield_now().await;
                was_there
            };
            let task = {
                let mut handshakes = table.lock().expect("no panic");
                let task = tokio::spawn(work);
                handshakes.insert(ticket, task.abort_handle());
                task
            };
            // At another moment of the task each time.
            for _ in 0..number % 500 {
                std::hint::spin_loop();
            }
            let evicted = abort(&mut table.lock().expect("no panic"), ticket);
            match task.await {
                Ok(was_there) => assert!(was_there && !evicted, "{number}: it was let go on"),
                Err(error) => assert!(evicted && error.is_cancelled(), "{number}: {error}"),
            }
        }
    }
}

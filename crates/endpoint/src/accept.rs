//! From the first packet to the finished handshake.

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

/// Asks an accept loop whether it still runs; the loop answers.
pub(crate) type Probe = oneshot::Sender<()>;

/// Handshakes under way that can be ended for newer ones.
pub(crate) type HandshakeTasks = Mutex<HashMap<HandshakeId, AbortHandle>>;

/// One of them, for as long as it is under way.
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
        self.handshakes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the handshake `ticket`, and what comes of it, in the place of `evict`.
    fn start_handshake<F>(
        self: &Arc<Self>,
        ticket: HandshakeId,
        evict: Option<HandshakeId>,
        run: impl FnOnce(Handshake) -> F,
    ) where
        F: Future<Output = ()> + Send + 'static,
    {
        if evict.is_some_and(|evict| abort(&mut self.handshakes(), evict)) {
            self.meters.hit(AdmissionLimit::Handshakes);
            self.totals.handshakes_evicted.add();
        }
        let shared = Arc::clone(self);
        let work = run(Handshake { shared, ticket });
        // Held until the handle is in the table, so that the task cannot end before it is.
        let mut handshakes = self.handshakes();
        let task = tokio::spawn(work);
        handshakes.insert(ticket, task.abort_handle());
    }
}

/// Ends a handshake that is still under way. The table stays locked meanwhile: a task that found itself in it is served,
/// and is not ended afterwards.
fn abort(handshakes: &mut HashMap<HandshakeId, AbortHandle>, ticket: HandshakeId) -> bool {
    let handle = handshakes.remove(&ticket);
    handle.is_some_and(|handle| {
        handle.abort();
        true
    })
}

/// Resolves once the node drains.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error would mean that the server is gone, which is stopping too.
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Runs a handshake within its time, ends it when the node drains, and counts how it went.
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
            // A refusal has its own total already: counted here as well, the sum of all results would be too high.
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

/// The key behind a chain. The verifier has accepted it, so that it can be read.
fn proof(chain: &[CertificateDer<'_>]) -> Option<PeerProof> {
    PeerProof::from_certificate(chain.first()?).ok()
}

/// An IPv4 peer of a socket for both families, as IPv4.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A flood evicts handshakes, one of them in the moment in which it is done.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn who_finished_a_handshake_is_not_ended_for_a_newer_one() {
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

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

use crate::admission::{Limit, Ticket};
use crate::metrics::Refused;
use crate::serve::Shared;

/// Asks an accept loop whether it still runs; the loop answers.
pub(crate) type Probe = oneshot::Sender<()>;

/// Handshakes under way that can be ended for newer ones.
pub(crate) type Handshakes = Mutex<HashMap<Ticket, AbortHandle>>;

/// One of them, for as long as it is under way.
pub(crate) struct Handshake {
    shared: Arc<Shared>,
    ticket: Ticket,
}

impl Handshake {
    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }
}

impl Drop for Handshake {
    fn drop(&mut self) {
        self.shared.handshakes().remove(&self.ticket);
        self.shared.admission().finish(self.ticket);
    }
}

impl Shared {
    fn handshakes(&self) -> MutexGuard<'_, HashMap<Ticket, AbortHandle>> {
        self.handshakes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the handshake `ticket`, and what comes of it, in the place of `evict`.
    fn start_handshake<F>(
        self: &Arc<Self>,
        ticket: Ticket,
        evict: Option<Ticket>,
        run: impl FnOnce(Handshake) -> F,
    ) where
        F: Future<Output = ()> + Send + 'static,
    {
        if let Some(oldest) = evict.and_then(|evict| self.handshakes().remove(&evict)) {
            self.meters.hit(Limit::Handshakes);
            self.totals.handshakes_evicted.add();
            oldest.abort();
        }
        let shared = Arc::clone(self);
        let work = run(Handshake { shared, ticket });
        // Held until the handle is in the table, so that the task cannot end before it is.
        let mut handshakes = self.handshakes();
        let task = tokio::spawn(work);
        handshakes.insert(ticket, task.abort_handle());
    }
}

/// Resolves once the node drains.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error would mean that the server is gone, which is stopping too.
    let _ = stop.wait_for(|stop| *stop && !alknet_core::mutant_a(1092)).await;
}

/// Runs a handshake within its time, ends it when the node drains, and counts how it went.
async fn bounded<T>(shared: &Shared, handshake: impl Future<Output = io::Result<T>>) -> Option<T> {
    let mut stop = shared.stop.subscribe();
    let totals = &shared.totals;
    let began = Instant::now();
    let result = tokio::select! {
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
            let refused = error.get_ref().is_some_and(|inner| inner.is::<Refused>());
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

//! Certificates from an authority that speaks ACME (RFC 8555), ordered and renewed without an administrator
//! having to think of it.
//!
//! One certificate holds all configured names. It is served from disk at start and replaced in
//! the [`CertificateStore`] when a new one has been checked; until then, and when something goes
//! wrong, the old one stays. What to do when is decided by a planner that knows neither clock nor
//! network; this module does it.

mod account;
mod challenge;
mod clock;
mod disk;
mod error;
mod keys;
mod order;
mod plan;
mod retry_after;
mod transport;

#[cfg(test)]
mod backoff_tests;
#[cfg(test)]
mod fake;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use instant_acme::{Account, CertificateIdentifier};
use rustls::pki_types::Der;
use tokio::sync::Notify;
use tokio::time::timeout;

pub use challenge::{
    AlpnChallenges, ChallengeKind, DnsChallenge, HttpChallengeResponder, HttpChallenges,
};
pub use error::AcmeError;
pub use keys::{AccountKey, KeySeal, SealError};
pub use plan::{BACK_OFF_MAX_S, BACK_OFF_MIN_S, ORDERS_PER_DAY_MAX};
pub use retry_after::{RATE_LIMITED_S, RETRY_AFTER_MAX_S};
pub use transport::AcmeTransport;

use crate::der;
use crate::diagnostics::{ACME_FAILED, CLOCK_INSANE, NodeDiagnostics};
use crate::pair::CertificatePair;
use crate::store::{CertificateSource, CertificateStore};
use clock::{AcmeClock, AcmeSystemClock};
use disk::{AcmeStorage, StoredCertificateKey};
use order::{CertificateOrder, ChallengeResponders, CsrKeyPair, Issued};
use plan::{AcmeStep, Planner, UnixTimeSpan};
use retry_after::RetryAfter;

/// Names in one certificate.
pub const NAMES_MAX: usize = 25;

/// Longest time for one order, all waiting included.
const ORDER_TIMEOUT: Duration = Duration::from_secs(600);

/// Longest sleep: a clock that is set meanwhile is noticed after this.
const SLEEP_MAX: Duration = Duration::from_secs(600);

/// How often a wrong clock is looked at again.
const CLOCK_PAUSE: Duration = Duration::from_secs(10);

/// How often the node tries again to seal or open a key: that takes no request to the authority.
const KEY_PAUSE: Duration = Duration::from_secs(10);

/// How often the authority is asked when it would like a renewal, at least and at most (RFC 9773
/// section 4.3.2).
const WINDOW_PAUSE_MIN: Duration = Duration::from_secs(600);
const WINDOW_PAUSE_MAX: Duration = Duration::from_secs(86_400);

/// What to order, and where.
#[derive(Clone, Debug)]
pub struct AcmeOptions {
    /// URL of the authority's directory.
    pub directory: String,
    /// Where the authority may write to, `mailto:…`.
    pub contact: Vec<String>,
    /// The names of the certificate, 1 to [`NAMES_MAX`]; the first names its folder.
    pub names: Vec<String>,
    /// The only way to answer, where the operator named one.
    pub challenge: Option<ChallengeKind>,
    /// The authority's profile (`shortlived`), where not its usual one.
    pub profile: Option<String>,
    /// Directory for account and certificate.
    pub state_dir: PathBuf,
    /// Seconds of Unix time before which no clock is believed: the time of the build.
    pub clock_floor: u64,
}

/// The parts of the node it works with.
pub struct AcmeParts {
    /// The way to the authority.
    pub transport: Arc<dyn AcmeTransport>,
    /// Where the certificate is served from.
    pub store: Arc<CertificateStore>,
    /// Where problems are reported.
    pub problems: Arc<NodeDiagnostics>,
    /// The same that the port's TLS was made with.
    pub alpn: Arc<AlpnChallenges>,
    /// Mounted on port 80, where there is one.
    pub http: Option<Arc<HttpChallenges>>,
    /// The DNS part, where there is one.
    pub dns: Option<Arc<dyn DnsChallenge>>,
    /// The account's key, where it is derived: a node that is built again from the same secret has the same account.
    /// Without, the node makes a key and keeps it on the disk.
    pub account_key: Option<Arc<dyn AccountKey>>,
    /// What seals the keys of certificates, where there is something that can. Without, they lie on the
    /// disk as they are, mode 0600.
    pub key_seal: Option<Arc<dyn KeySeal>>,
}

/// Keeps one certificate.
pub struct Acme {
    options: AcmeOptions,
    transport: Arc<dyn AcmeTransport>,
    store: Arc<CertificateStore>,
    problems: Arc<NodeDiagnostics>,
    answers: ChallengeResponders,
    disk: AcmeStorage,
    plan: Planner,
    account_key: Option<Arc<dyn AccountKey>>,
    account: Option<Account>,
    retry_after: Arc<RetryAfter>,
    /// When the authority was asked for the renewal window, and how long that holds.
    window_asked: Option<(u64, Duration)>,
    /// What was kept cannot be opened, or not be sealed, until an administrator unlocks the seal.
    locked: bool,
    renew: Arc<Notify>,
    clock: Arc<dyn AcmeClock>,
}

/// Asks for a renewal before its time.
#[derive(Clone, Debug)]
pub struct AcmeHandle(Arc<Notify>);

impl AcmeHandle {
    /// Orders a new certificate as soon as the limits allow.
    pub fn renew(&self) {
        self.0.notify_one();
    }
}

impl Acme {
    /// Serves what the last run left, if it still fits.
    ///
    /// # Errors
    /// The names cannot stand in a certificate, or the state directory cannot be used.
    pub fn new(mut options: AcmeOptions, parts: AcmeParts) -> Result<Self, AcmeError> {
        // DNS compares names without case (RFC 4343), and so does whatever looks these up.
        options
            .names
            .iter_mut()
            .for_each(|n| n.make_ascii_lowercase());
        let first = check_names(&options.names)?;
        let disk = AcmeStorage::open(&options.state_dir, first, parts.key_seal)?;
        let plan = Planner::new(options.names.clone(), options.clock_floor, disk.history());
        let mut acme = Self {
            answers: ChallengeResponders {
                alpn: parts.alpn,
                http: parts.http,
                dns: parts.dns,
                only: options.challenge,
            },
            transport: parts.transport,
            store: parts.store,
            problems: parts.problems,
            disk,
            plan,
            account_key: parts.account_key,
            account: None,
            retry_after: Arc::default(),
            window_asked: None,
            locked: false,
            renew: Arc::default(),
            clock: Arc::new(AcmeSystemClock),
            options,
        };
        acme.serve_kept();
        Ok(acme)
    }

    /// For asking from outside while it runs.
    #[must_use]
    pub fn handle(&self) -> AcmeHandle {
        AcmeHandle(Arc::clone(&self.renew))
    }

    /// Orders and renews for ever.
    pub async fn run(mut self) {
        loop {
            if self.locked {
                self.serve_kept();
            }
            if self.locked {
                self.clock.sleep(KEY_PAUSE).await;
                continue;
            }
            match self.plan.next(self.now()) {
                AcmeStep::ClockInsane => {
                    let text = "the clock is before this program was built; check the network's \
                                time servers. No certificate is ordered until then";
                    self.problems.set(CLOCK_INSANE, "acme", text.to_owned());
                    self.clock.sleep(CLOCK_PAUSE).await;
                }
                AcmeStep::Order => {
                    self.problems.clear(CLOCK_INSANE, "acme");
                    self.order().await;
                }
                AcmeStep::Wait { until } => {
                    self.problems.clear(CLOCK_INSANE, "acme");
                    self.wait(until).await;
                }
            }
        }
    }

    /// Sleeps towards `until`, asking the authority meanwhile when it wants a renewal.
    async fn wait(&mut self, until: u64) {
        let left = Duration::from_secs(until.saturating_sub(self.now()));
        tokio::select! {
            () = self.clock.sleep(left.min(SLEEP_MAX)) => {}
            () = self.renew.notified() => self.plan.ask(),
        }
        let now = self.now();
        if now >= until || self.plan.is_paused(now) {
            return;
        }
        // By a clock that was ahead it was asked in a time that is yet to come.
        let holds = |(at, pause): (u64, Duration)| at <= now && now - at < pause.as_secs();
        if !self.window_asked.is_some_and(holds) {
            let pause = self.ask_window().await;
            self.window_asked = Some((self.now(), pause));
        }
    }

    /// Asks for the renewal window; returns when to ask again. An authority that does not know
    /// windows, or is not there, leaves the usual plan.
    async fn ask_window(&mut self) -> Duration {
        let Some(pair) = self.store.pair(CertificateSource::Acme) else {
            return WINDOW_PAUSE_MIN;
        };
        // Without its issuer's key identifier a certificate has no name in the protocol (RFC 9773 section 4.1).
        let Some(id) = identifier(&pair) else {
            return WINDOW_PAUSE_MAX;
        };
        let Ok(account) = self.account().await else {
            self.heed();
            return WINDOW_PAUSE_MIN;
        };
        match timeout(ORDER_TIMEOUT, account.renewal_info(&id)).await {
            Ok(Ok((info, again))) => {
                let seconds = |at: i64| u64::try_from(at).unwrap_or(0);
                self.plan.suggest(Some(UnixTimeSpan {
                    from: seconds(info.suggested_window.start.unix_timestamp()),
                    to: seconds(info.suggested_window.end.unix_timestamp()),
                }));
                again.clamp(WINDOW_PAUSE_MIN, WINDOW_PAUSE_MAX)
            }
            // The directory offers no renewal information; one question a day sees when that changes.
            Ok(Err(instant_acme::Error::Unsupported(_))) => WINDOW_PAUSE_MAX,
            Ok(Err(_)) | Err(_) => {
                self.heed();
                WINDOW_PAUSE_MIN
            }
        }
    }

    /// Leaves the authority alone for as long as it said, if it did.
    fn heed(&mut self) -> Option<u64> {
        let now = self.now();
        let seconds = self.retry_after.take(now)?;
        self.plan.leave_alone(now, seconds);
        self.keep_history();
        Some(seconds)
    }

    async fn order(&mut self) {
        let subject = self.subject();
        let (fresh, kept) = match self.fresh_key() {
            Ok(keys) => keys,
            Err(error) => {
                // The authority was asked for nothing, so this is no order that counts.
                self.problems.set(ACME_FAILED, &subject, error.to_string());
                return self.clock.sleep(KEY_PAUSE).await;
            }
        };
        let result = timeout(ORDER_TIMEOUT, self.try_order(&fresh, &kept)).await;
        let result = result.unwrap_or(Err(AcmeError::TimedOut(ORDER_TIMEOUT.as_secs())));
        match result {
            Ok(issued) => {
                // What was refused on the way came to a good end.
                let _ = self.retry_after.take(self.now());
                self.plan.succeeded(validity(&issued.pair), random());
                self.window_asked = None;
                tracing::info!("a new certificate is served for {subject}");
                self.store.put(CertificateSource::Acme, issued.pair);
                self.problems.clear(ACME_FAILED, &subject);
            }
            Err(error) => {
                self.plan.failed(self.now());
                // The account may be what is wrong: it is looked up again.
                self.account = None;
                let text = match self.heed() {
                    Some(seconds) => format!("{error}; it is left alone for {seconds} s"),
                    None => error.to_string(),
                };
                self.problems.set(ACME_FAILED, &subject, text);
            }
        }
        self.keep_history();
    }

    /// A key for the next certificate, and the form in which it will be kept. It is sealed before the
    /// authority is asked, so that no certificate comes whose key could then not be kept.
    fn fresh_key(&self) -> Result<(CsrKeyPair, StoredCertificateKey), AcmeError> {
        let fresh = CsrKeyPair::make(&self.options.names)?;
        let kept = self.disk.seal(&fresh.pem)?;
        Ok((fresh, kept))
    }

    async fn try_order(
        &mut self,
        fresh: &CsrKeyPair,
        kept: &StoredCertificateKey,
    ) -> Result<Issued, AcmeError> {
        let account = self.account().await?;
        // Only now is it an order that the authority counts. Written before, so that a crash in the middle
        // of it counts, too.
        self.plan.began(self.now());
        self.keep_history();
        let held = self.store.pair(CertificateSource::Acme);
        let attempt = self.plan.failures();
        let wanted = CertificateOrder {
            names: &self.options.names,
            fresh,
            profile: self.options.profile.as_deref(),
            // Only where the authority gave a window does it know the certificate; and a second
            // try must not fail because the first has replaced it.
            replaces: held
                .as_ref()
                .filter(|_| self.plan.has_window() && attempt == 0)
                .and_then(identifier),
            attempt,
        };
        let now = || self.clock.now();
        let issued = order::order(&account, wanted, &self.answers, now).await?;
        self.disk.keep_certificate(&issued.chain, kept)?;
        Ok(issued)
    }

    fn now(&self) -> u64 {
        self.clock.now()
    }

    /// Serves what was kept, and leaves its key sealed where it can be. What is only locked is waited
    /// for: another certificate could not be kept either.
    fn serve_kept(&mut self) {
        let was_locked = std::mem::take(&mut self.locked);
        match self.disk.certificate() {
            Ok(Some(kept)) => self.serve(kept),
            Ok(None) => {}
            Err(error) if error.is_locked() => return self.wait_for_key(&error),
            Err(error) => return tracing::warn!("a new certificate is ordered: {error}"),
        }
        match self.disk.seal_kept() {
            Ok(()) => {}
            Err(error) if error.is_locked() => return self.wait_for_key(&error),
            Err(error) => tracing::warn!("the key of the certificate is not sealed: {error}"),
        }
        if was_locked {
            self.problems.clear(ACME_FAILED, &self.subject());
        }
    }

    fn serve(&mut self, kept: CertificatePair) {
        let fits = |name: &String| kept.names().contains(name);
        if self.options.names.iter().all(fits) {
            self.plan.hold(validity(&kept), random());
        }
        // Even for some of the names, or near its end, it is better than none.
        self.store.put(CertificateSource::Acme, kept);
    }

    fn wait_for_key(&mut self, error: &AcmeError) {
        self.locked = true;
        let text = format!("{error}; it is tried again, and nothing is ordered until then");
        self.problems.set(ACME_FAILED, &self.subject(), text);
    }

    fn subject(&self) -> String {
        self.options.names.join(", ")
    }

    fn keep_history(&self) {
        if let Err(error) = self.disk.keep_history(self.plan.history()) {
            tracing::warn!("the history of certificate orders is not kept: {error}");
        }
    }
}

impl std::fmt::Debug for Acme {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Acme({})", self.options.names.join(", "))
    }
}

impl std::fmt::Debug for AcmeParts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AcmeParts")
    }
}

fn check_names(names: &[String]) -> Result<&str, AcmeError> {
    let first = names
        .first()
        .ok_or_else(|| AcmeError::Names("tls.acme.domains is empty; name a domain".to_owned()))?;
    if names.len() > NAMES_MAX {
        let text = format!("tls.acme.domains has more than {NAMES_MAX} names; leave some out");
        return Err(AcmeError::Names(text));
    }
    let wrong = |name: &&String| !crate::is_dns_name(name.strip_prefix("*.").unwrap_or(name));
    if let Some(name) = names.iter().find(wrong) {
        let text = format!("'{name}' in tls.acme.domains is no DNS name; correct it");
        return Err(AcmeError::Names(text));
    }
    Ok(first)
}

/// What the authority knows a certificate by (RFC 9773 section 4.1).
fn identifier(pair: &CertificatePair) -> Option<CertificateIdentifier<'static>> {
    let certificate = pair.certified().cert.first()?;
    let facts = der::facts(certificate)?;
    let authority = facts.authority_key?;
    Some(
        CertificateIdentifier::new(Der::from_slice(authority), Der::from_slice(facts.serial))
            .into_owned(),
    )
}

fn validity(pair: &CertificatePair) -> UnixTimeSpan {
    UnixTimeSpan {
        from: pair.not_before(),
        to: pair.not_after(),
    }
}

/// Without random bytes all renewals come at the start of their spans, which is no harm.
fn random() -> u64 {
    getrandom::u64().unwrap_or(0)
}

#[cfg(test)]
mod tests;

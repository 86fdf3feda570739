//! How much one identity, or one stranger's address, may ask for.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use alknet_core::PeerId;

use crate::error::ApiError;
use crate::limits;

/// What the configuration allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// Requests a second for one identity, on average.
    pub per_second: u32,
    /// Requests one identity may make at once before the average counts.
    pub burst: u32,
    /// The same for an address that nobody is known to be behind.
    pub stranger_per_second: u32,
    /// And at once.
    pub stranger_burst: u32,
    /// Calls at once for the whole node.
    pub calls: usize,
    /// Calls at once for one identity.
    pub calls_each: usize,
    /// Streams of events at once for one identity.
    pub streams_each: usize,
}

impl Default for Quota {
    fn default() -> Self {
        Self {
            per_second: limits::REQUESTS_PER_SECOND,
            burst: limits::REQUESTS_BURST,
            stranger_per_second: limits::STRANGER_REQUESTS_PER_SECOND,
            stranger_burst: limits::STRANGER_REQUESTS_BURST,
            calls: limits::CALLS_PER_NODE,
            calls_each: limits::CALLS_PER_IDENTITY,
            streams_each: limits::STREAMS_PER_IDENTITY,
        }
    }
}

/// Whom requests are counted for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Who {
    Known(PeerId),
    /// An IPv4 address, or the first 64 bits of an IPv6 one.
    Address(IpAddr),
    /// On a carriage without addresses.
    Nowhere,
}

/// What runs for somebody.
#[derive(Debug, Default)]
struct Load {
    calls: AtomicU32,
    streams: AtomicU32,
}

#[derive(Debug)]
struct Account {
    /// Requests left of the burst.
    left: f64,
    at: Instant,
    load: Arc<Load>,
}

/// Counts requests.
#[derive(Debug, Default)]
pub struct Room {
    books: Mutex<Books>,
    all: Arc<Load>,
}

/// Under one lock, since every request needs both.
#[derive(Debug, Default)]
struct Books {
    quota: Quota,
    accounts: HashMap<Who, Account>,
}

impl Books {
    /// The account of `who`, or of somebody at `address`: a new one with all of its burst, if need be.
    fn account(
        &mut self,
        who: Option<&PeerId>,
        address: Option<IpAddr>,
        now: Instant,
    ) -> &mut Account {
        let burst = match who {
            Some(_) => self.quota.burst,
            None => self.quota.stranger_burst,
        };
        let who = match (who, address) {
            (Some(id), _) => Who::Known(id.clone()),
            (None, Some(address)) => Who::Address(network(address)),
            (None, None) => Who::Nowhere,
        };
        if self.accounts.len() >= limits::ACCOUNTS_MAX && !self.accounts.contains_key(&who) {
            forget(&mut self.accounts, now);
        }
        self.accounts.entry(who).or_insert_with(|| Account {
            left: f64::from(burst),
            at: now,
            load: Arc::default(),
        })
    }
}

/// A place that a call or a stream has as long as it runs.
#[derive(Debug)]
pub struct Place {
    own: Arc<Load>,
    all: Arc<Load>,
    stream: bool,
}

impl Drop for Place {
    fn drop(&mut self) {
        let (own, all) = (self.counter(&self.own), self.counter(&self.all));
        own.fetch_sub(1, Ordering::AcqRel);
        all.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Place {
    fn counter<'a>(&self, load: &'a Load) -> &'a AtomicU32 {
        if self.stream {
            &load.streams
        } else {
            &load.calls
        }
    }
}

impl Room {
    /// Room for as much as `quota` says.
    #[must_use]
    pub fn new(quota: Quota) -> Self {
        let accounts = HashMap::new();
        Self {
            books: Mutex::new(Books { quota, accounts }),
            all: Arc::default(),
        }
    }

    /// Another quota from now on.
    pub fn set_quota(&self, quota: Quota) {
        self.books().quota = quota;
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts one request of `who`, or of somebody at `address`.
    ///
    /// # Errors
    /// Too many of them came lately.
    pub fn request(&self, who: Option<&PeerId>, address: Option<IpAddr>) -> Result<(), ApiError> {
        self.spend(who, address, Instant::now())
    }

    fn spend(
        &self,
        who: Option<&PeerId>,
        address: Option<IpAddr>,
        now: Instant,
    ) -> Result<(), ApiError> {
        let mut books = self.books();
        let quota = books.quota;
        let (rate, burst) = match who {
            Some(_) => (quota.per_second, quota.burst),
            None => (quota.stranger_per_second, quota.stranger_burst),
        };
        let (rate, burst) = (f64::from(rate), f64::from(burst));
        let account = books.account(who, address, now);
        let passed = now.saturating_duration_since(account.at).as_secs_f64();
        account.left = (account.left + passed * rate).min(burst);
        account.at = now;
        if account.left >= 1.0 {
            account.left -= 1.0;
            return Ok(());
        }
        let wait = Duration::from_secs_f64(((1.0 - account.left) / rate.max(0.001)).min(60.0));
        let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        let message = "too many requests; send fewer";
        Err(ApiError::overloaded(message, wait_ms))
    }

    /// A place for a call of `who`, or of somebody at `address`.
    ///
    /// # Errors
    /// As many run as may.
    pub fn call(&self, who: Option<&PeerId>, address: Option<IpAddr>) -> Result<Place, ApiError> {
        self.place(who, address, false)
    }

    /// A place for a stream of events.
    ///
    /// # Errors
    /// As many are open as may.
    pub fn stream(&self, who: Option<&PeerId>, address: Option<IpAddr>) -> Result<Place, ApiError> {
        self.place(who, address, true)
    }

    fn place(
        &self,
        who: Option<&PeerId>,
        address: Option<IpAddr>,
        stream: bool,
    ) -> Result<Place, ApiError> {
        let (quota, own) = {
            let mut books = self.books();
            let account = books.account(who, address, Instant::now());
            let own = Arc::clone(&account.load);
            (books.quota, own)
        };
        let (each, all) = match stream {
            true => (quota.streams_each, usize::MAX),
            false => (quota.calls_each, quota.calls),
        };
        // Made at once, so that whatever is refused is also given back.
        let place = Place {
            own,
            all: Arc::clone(&self.all),
            stream,
        };
        let ours = place.counter(&place.own).fetch_add(1, Ordering::AcqRel) as usize;
        let everybodys = place.counter(&place.all).fetch_add(1, Ordering::AcqRel) as usize;
        let what = if stream { "streams of events" } else { "calls" };
        if ours >= each {
            let message = format!("at most {each} {what} at once for one identity");
            return Err(ApiError::overloaded(message, 1000));
        }
        if everybodys >= all {
            let message = format!("the node runs {all} {what} at once and no more");
            return Err(ApiError::overloaded(message, 1000));
        }
        Ok(place)
    }

    /// Calls and streams that run now.
    #[must_use]
    pub fn running(&self) -> (u32, u32) {
        let read = |counter: &AtomicU32| counter.load(Ordering::Acquire);
        (read(&self.all.calls), read(&self.all.streams))
    }
}

/// Makes room: whoever has not asked for a while and has nothing running is new when they come back.
fn forget(accounts: &mut HashMap<Who, Account>, now: Instant) {
    const LONG: Duration = Duration::from_secs(60);
    let idle = |account: &Account| Arc::strong_count(&account.load) == 1;
    accounts
        .retain(|_, account| !idle(account) || now.saturating_duration_since(account.at) < LONG);
    while accounts.len() >= limits::ACCOUNTS_MAX {
        let oldest = accounts.iter().filter(|(_, account)| idle(account));
        let oldest = oldest.min_by_key(|(_, account)| account.at);
        let Some(who) = oldest.map(|(who, _)| who.clone()) else {
            return;
        };
        accounts.remove(&who);
    }
}

/// Whoever has one IPv6 address has 2^64 of them.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => {
            let bits = u128::from(v6) >> 64 << 64;
            IpAddr::V6(Ipv6Addr::from(bits))
        }
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn room() -> Room {
        Room::new(Quota {
            per_second: 10,
            burst: 3,
            stranger_per_second: 1,
            stranger_burst: 1,
            calls: 3,
            calls_each: 2,
            streams_each: 1,
        })
    }

    #[test]
    fn a_burst_is_used_up_and_fills_again() {
        let (room, who) = (room(), "ada".parse().expect("an id"));
        let start = Instant::now();
        for _ in 0..3 {
            assert!(room.spend(Some(&who), None, start).is_ok());
        }
        let refused = room.spend(Some(&who), None, start).expect_err("used up");
        assert_eq!(refused.error.retry_after_ms, Some(100));
        let later = start + Duration::from_millis(100);
        assert!(room.spend(Some(&who), None, later).is_ok());
        assert!(room.spend(Some(&who), None, later).is_err());
        let other = "bob".parse().expect("an id");
        assert!(room.spend(Some(&other), None, later).is_ok());
    }

    #[test]
    fn strangers_are_counted_by_their_network() {
        let room = room();
        let now = Instant::now();
        let at = |text: &str| Some(text.parse().expect("an address"));
        assert!(room.spend(None, at("2001:db8::1"), now).is_ok());
        assert!(room.spend(None, at("2001:db8::2"), now).is_err());
        assert!(room.spend(None, at("2001:db8:0:1::1"), now).is_ok());
        assert!(room.spend(None, at("192.0.2.1"), now).is_ok());
        assert!(room.spend(None, at("::ffff:192.0.2.1"), now).is_err());
    }

    #[test]
    fn places_are_given_back_the_refused_ones_too() {
        let (room, who) = (room(), "ada".parse().expect("an id"));
        let places: Vec<_> = (0..2)
            .map(|_| room.call(Some(&who), None).expect("room"))
            .collect();
        assert!(room.call(Some(&who), None).is_err());
        assert!(room.stream(Some(&who), None).is_ok(), "counted apart");
        let other = "bob".parse().expect("an id");
        let third = room.call(Some(&other), None).expect("room");
        assert!(room.call(Some(&other), None).is_err(), "the node is full");
        drop((places, third));
        assert_eq!(room.running(), (0, 0));
    }

    #[test]
    fn accounts_are_bounded() {
        let room = room();
        let now = Instant::now();
        for n in 0..limits::ACCOUNTS_MAX as u32 + 10 {
            let address = IpAddr::V4((0x0a00_0000 + n).into());
            assert!(room.spend(None, Some(address), now).is_ok());
        }
        let books = room.books.lock().expect("no panic");
        assert!(books.accounts.len() <= limits::ACCOUNTS_MAX);
    }
}

//! Keeps the machine's clock right from SNTP servers.
//!
//! The first answer may set the clock at once; after that it is only let run a little faster or
//! slower, unless three answers in a row say that it is far off (the machine slept). The clock
//! never goes below the time the binary was built. Plain SNTP is not signed: who sits between us
//! and the server can lie, who does not cannot.

pub mod sntp;

mod clock;
mod discipline;
mod lookup;

use std::{
    io,
    net::SocketAddr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::{
    net::UdpSocket,
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{Instant, timeout},
};

pub use clock::{AdjustableClock, KernelClock};

use discipline::{ClockAction, ClockDiscipline, PollOutcome};
use sntp::{SntpExchange, SntpReply};

use crate::{NetError, entropy::secret_u64};

/// How long a server may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often the clock that survives being off is set.
const STORE_EVERY: Duration = Duration::from_secs(3600);

/// Which servers to ask.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TimeSources {
    /// Servers in order: addresses or names, with `:port` if it is not 123.
    pub servers: Vec<String>,
    /// Name servers, as [`crate::NetState::resolvers`] has them.
    pub resolvers: Vec<SocketAddr>,
}

/// What the time keeper tells its owner.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TimeEvent {
    /// No server gave the time in this round; it goes on trying.
    Failed {
        /// The last reason.
        reason: String,
    },
    /// The clock was set by `offset_ms`; [`TimeEvent::Synced`] follows.
    Stepped {
        /// How far it was off, in milliseconds.
        offset_ms: i64,
    },
    /// The clock is right, or is being slewed by `offset_ms`.
    Synced {
        /// How far it was off, in milliseconds.
        offset_ms: i64,
        /// Who said so, as in [`TimeSources::servers`].
        server: String,
    },
}

/// Starts the time keeper.
#[derive(Debug)]
pub struct TimeKeeper(());

impl TimeKeeper {
    /// Keeps the system clock as a task of the current tokio runtime until the handle is dropped.
    pub fn start(
        sources: TimeSources,
        build_time: SystemTime,
        events: mpsc::Sender<TimeEvent>,
    ) -> TimeHandle {
        Self::start_with(KernelClock::default(), sources, build_time, events)
    }

    /// The same with another clock.
    pub fn start_with(
        clock: impl AdjustableClock,
        sources: TimeSources,
        build_time: SystemTime,
        events: mpsc::Sender<TimeEvent>,
    ) -> TimeHandle {
        let (sender, receiver) = watch::channel(sources);
        let build = build_time.duration_since(UNIX_EPOCH).unwrap_or_default();
        let keeper = TimeKeeperTask {
            clock,
            sources: receiver,
            build_secs: build.as_secs().try_into().unwrap_or(0),
            events,
            discipline: ClockDiscipline::new(0, Duration::ZERO),
            epoch: Instant::now(),
            stored_at: None,
            reason: String::new(),
        };
        TimeHandle {
            sources: sender,
            task: tokio::spawn(keeper.run()),
        }
    }
}

/// The running time keeper; dropping it ends it.
#[derive(Debug)]
pub struct TimeHandle {
    sources: watch::Sender<TimeSources>,
    task: JoinHandle<()>,
}

impl TimeHandle {
    /// Other servers or name servers. The same ones change nothing.
    pub fn update(&self, sources: TimeSources) {
        self.sources.send_if_modified(|old| {
            let other = *old != sources;
            *old = sources;
            other
        });
    }

    /// Waits until the task ends, which it never does by itself: says why it did. The caller
    /// starts another.
    pub async fn ended(&mut self) -> String {
        match (&mut self.task).await {
            Ok(()) => "the time keeper ended".to_owned(),
            Err(e) => format!("the time keeper ended: {e}"),
        }
    }
}

impl Drop for TimeHandle {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct TimeKeeperTask<C> {
    clock: C,
    sources: watch::Receiver<TimeSources>,
    build_secs: i64,
    events: mpsc::Sender<TimeEvent>,
    discipline: ClockDiscipline,
    epoch: Instant,
    stored_at: Option<Duration>,
    reason: String,
}

impl<C: AdjustableClock> TimeKeeperTask<C> {
    async fn run(mut self) {
        loop {
            let sources = self.sources.borrow_and_update().clone();
            self.discipline.replace(sources.servers.len(), self.now());
            // A receiver of its own, since `follow` borrows the task.
            let mut changes = self.sources.clone();
            tokio::select! {
                changed = changes.changed() => if changed.is_err() {
                    return;
                },
                () = self.follow(&sources) => {}
            }
        }
    }

    fn now(&self) -> Duration {
        self.epoch.elapsed()
    }

    /// Asks these servers for ever.
    async fn follow(&mut self, sources: &TimeSources) {
        loop {
            let Some((at, server)) = self.discipline.next() else {
                // Only other sources can change that, and `run` waits for those.
                return std::future::pending().await;
            };
            tokio::time::sleep_until(self.epoch + at).await;
            let name = &sources.servers[server];
            let outcome = match self.ask(name, &sources.resolvers).await {
                Ok(SntpReply::Time(sample)) => PollOutcome::Sample(sample),
                Ok(SntpReply::Kiss(kiss)) => {
                    self.reason = format!("{name} refuses to answer");
                    PollOutcome::Kiss(kiss)
                }
                Err(e) => {
                    self.reason = e.to_string();
                    PollOutcome::Silent
                }
            };
            let verdict = self.discipline.take(self.now(), outcome);
            self.act(verdict, name).await;
        }
    }

    async fn ask(&self, server: &str, resolvers: &[SocketAddr]) -> Result<SntpReply, NetError> {
        let mut failed = NetError::Lookup {
            name: server.to_owned(),
            reason: "it has no address".to_owned(),
        };
        for address in lookup::lookup(server, resolvers).await? {
            match self.exchange(address).await {
                Ok(answer) => return Ok(answer),
                Err(source) => {
                    failed = NetError::Exchange {
                        server: address,
                        source,
                    };
                }
            }
        }
        Err(failed)
    }

    async fn exchange(&self, server: SocketAddr) -> io::Result<SntpReply> {
        let socket = lookup::connect(server).await?;
        let cookie = secret_u64()?;
        let exchange = SntpExchange::new(cookie, self.build_secs);
        let sent_ns = self.clock.now_ns();
        // Monotonic: a step of the clock between question and answer would look like a round trip.
        let sent = Instant::now();
        socket.send(&exchange.question()).await?;
        let heard = hear(&socket, &exchange, sent_ns, sent);
        timeout(PATIENCE, heard)
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
    }

    async fn act(&mut self, verdict: ClockAction, server: &str) {
        let done = match verdict {
            ClockAction::Nothing => return,
            ClockAction::RoundFailed => return self.fail().await,
            ClockAction::Step(offset) => self.step(offset).await,
            ClockAction::Slew(offset) => self.clock.slew(offset).map(|()| offset),
        };
        match done {
            Ok(offset) => self.synced(offset, server).await,
            Err(e) => {
                self.reason = e.to_string();
                self.fail().await;
            }
        }
    }

    async fn step(&mut self, offset_ns: i64) -> Result<i64, NetError> {
        self.clock.step(offset_ns)?;
        let offset_ms = offset_ns / 1_000_000;
        self.tell(TimeEvent::Stepped { offset_ms }).await;
        // The clock that survives being off was as wrong; `synced` sets it next.
        self.stored_at = None;
        Ok(offset_ns)
    }

    async fn synced(&mut self, offset_ns: i64, server: &str) {
        let now = self.now();
        if self.stored_at.is_none_or(|at| now >= at + STORE_EVERY) {
            // Before the attempt: one that refuses is not tried at each answer.
            self.stored_at = Some(now);
            if let Err(error) = self.clock.store() {
                tracing::warn!(%error, "the hardware clock was not set");
            }
        }
        let (offset_ms, server) = (offset_ns / 1_000_000, server.to_owned());
        self.tell(TimeEvent::Synced { offset_ms, server }).await;
    }

    async fn fail(&self) {
        let reason = self.reason.clone();
        self.tell(TimeEvent::Failed { reason }).await;
    }

    /// An owner that no longer listens does not stop the clock from being kept.
    async fn tell(&self, event: TimeEvent) {
        drop(self.events.send(event).await);
    }
}

/// Waits for the answer; other datagrams are skipped. The round trip is measured by a clock that is
/// never set.
async fn hear(
    socket: &UdpSocket,
    exchange: &SntpExchange,
    sent_ns: i64,
    sent: Instant,
) -> io::Result<SntpReply> {
    let mut buffer = [0; 512];
    loop {
        let len = socket.recv(&mut buffer).await?;
        let trip: i64 = sent.elapsed().as_nanos().try_into().unwrap_or(i64::MAX);
        let received_ns = sent_ns.saturating_add(trip);
        if let Some(answer) = exchange.answer(&buffer[..len], sent_ns, received_ns) {
            return Ok(answer);
        }
    }
}

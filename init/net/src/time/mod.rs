//! Keeps the machine's clock right with SNTP servers.
//!
//! The first answer may set the clock at once. After that, the clock only runs a little faster or
//! slower, unless three answers in a row say that it is far off, because the machine slept. The
//! clock never goes below the build time of the binary. Plain SNTP is not signed: an attacker on
//! the path to the server can send wrong times, and an attacker off the path cannot.

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

/// Maximum time for a server to answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often the hardware clock is set.
const STORE_EVERY: Duration = Duration::from_secs(3600);

/// The servers to ask.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TimeSources {
    /// Time servers in order: addresses or names, with `:port` if it is not 123.
    pub servers: Vec<String>,
    /// Name servers, as in [`crate::NetState::resolvers`].
    pub resolvers: Vec<SocketAddr>,
}

/// What time synchronisation sends its owner.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TimeEvent {
    /// No server gave the time in this round. The next round follows.
    Failed {
        /// The reason of the last failure.
        reason: String,
    },
    /// The clock was changed by `offset_ms`. [`TimeEvent::Synced`] follows.
    Stepped {
        /// How far the clock was off, in milliseconds.
        offset_ms: i64,
    },
    /// The clock is right, or is being slewed by `offset_ms`.
    Synced {
        /// How far the clock was off, in milliseconds.
        offset_ms: i64,
        /// The server that gave the time, as in [`TimeSources::servers`].
        server: String,
    },
}

/// Starts the synchronisation of the system clock.
#[derive(Debug)]
pub struct TimeSync(());

impl TimeSync {
    /// Keeps the system clock as a task of the current tokio runtime until the handle is dropped.
    pub fn start(
        sources: TimeSources,
        build_time: SystemTime,
        events: mpsc::Sender<TimeEvent>,
    ) -> TimeHandle {
        Self::start_with(KernelClock::default(), sources, build_time, events)
    }

    /// Like `start`, with another clock.
    pub fn start_with(
        clock: impl AdjustableClock,
        sources: TimeSources,
        build_time: SystemTime,
        events: mpsc::Sender<TimeEvent>,
    ) -> TimeHandle {
        let (sender, receiver) = watch::channel(sources);
        let build = build_time.duration_since(UNIX_EPOCH).unwrap_or_default();
        let task = TimeSyncTask {
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
            task: tokio::spawn(task.run()),
        }
    }
}

/// The running time synchronisation. Dropping it ends the task.
#[derive(Debug)]
pub struct TimeHandle {
    sources: watch::Sender<TimeSources>,
    task: JoinHandle<()>,
}

impl TimeHandle {
    /// Sets the servers and name servers. Equal ones change nothing.
    pub fn update(&self, sources: TimeSources) {
        self.sources.send_if_modified(|old| {
            let other = *old != sources;
            *old = sources;
            other
        });
    }

    /// Waits until the task ends, and returns the reason. The task never ends by itself. The caller
    /// starts another one.
    pub async fn ended(&mut self) -> String {
        match (&mut self.task).await {
            Ok(()) => "time synchronisation ended".to_owned(),
            Err(e) => format!("time synchronisation ended: {e}"),
        }
    }
}

impl Drop for TimeHandle {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct TimeSyncTask<C> {
    clock: C,
    sources: watch::Receiver<TimeSources>,
    build_secs: i64,
    events: mpsc::Sender<TimeEvent>,
    discipline: ClockDiscipline,
    epoch: Instant,
    stored_at: Option<Duration>,
    reason: String,
}

impl<C: AdjustableClock> TimeSyncTask<C> {
    async fn run(mut self) {
        loop {
            let sources = self.sources.borrow_and_update().clone();
            self.discipline.replace(sources.servers.len(), self.now());
            // `changes` is a receiver of its own, because `follow` borrows the task.
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

    /// Asks these servers for as long as the task runs.
    async fn follow(&mut self, sources: &TimeSources) {
        loop {
            let Some((at, server)) = self.discipline.next() else {
                // Only other sources change that, and `run` waits for those.
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
        // The round trip is measured with a monotonic clock: a step of the clock in between would
        // look like a long trip.
        let sent = Instant::now();
        socket.send(&exchange.question()).await?;
        let answered = receive_answer(&socket, &exchange, sent_ns, sent);
        timeout(PATIENCE, answered)
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
        self.send(TimeEvent::Stepped { offset_ms }).await;
        // The hardware clock was as wrong as the system clock. `synced` sets it next.
        self.stored_at = None;
        Ok(offset_ns)
    }

    async fn synced(&mut self, offset_ns: i64, server: &str) {
        let now = self.now();
        if self.stored_at.is_none_or(|at| now >= at + STORE_EVERY) {
            // The time is stored before the attempt, so that a clock which refuses is not set at
            // each answer.
            self.stored_at = Some(now);
            if let Err(error) = self.clock.store() {
                tracing::warn!(%error, "the hardware clock was not set");
            }
        }
        let (offset_ms, server) = (offset_ns / 1_000_000, server.to_owned());
        self.send(TimeEvent::Synced { offset_ms, server }).await;
    }

    async fn fail(&self) {
        let reason = self.reason.clone();
        self.send(TimeEvent::Failed { reason }).await;
    }

    /// Sends an event. The clock is kept even if the owner no longer listens.
    async fn send(&self, event: TimeEvent) {
        drop(self.events.send(event).await);
    }
}

/// Waits for the answer, and skips other datagrams. A clock that is never set measures the round
/// trip.
async fn receive_answer(
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

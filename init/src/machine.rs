//! The loop of PID 1: everything that happens arrives here as an event, and whatever is due is
//! done in a turn that never blocks.

mod commands;
mod configuration;
#[cfg(test)]
mod tests;
mod vault;

use std::{
    any::Any,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use alknet_provisioning::ConsoleDocument;
use nix::sys::signal::Signal;
use tokio::sync::mpsc;

use crate::{
    boot::{Booted, Opened},
    child::Node,
    clock,
    console::{Answer, Console},
    control::{MachineFacts, NodeStatus, PowerAction, Problem, ToInit, ToNode},
    data::{self, Prepared},
    errand,
    facts::{Clock, Facts},
    fault::{Fault, make_orphans},
    log::Log,
    network::{Network, News},
    reap::{self, End},
    settings::Settings,
    shutdown::{self, Shutdown, Step},
    stage::{self, Stage, boot_ms},
    supervise::{self, Order, Supervisor},
    vault::{Asking, For, Keeper, Offer, Outcome, Session, Waiting},
    watchdog::Watchdog,
};

/// Events that wait for the loop; whoever has more waits in turn.
pub(crate) const EVENTS_MAX: usize = 256;
/// How often the watchdog is fed, ms: a sixth of its time-out.
const FEED_EVERY_MS: u64 = 5_000;
/// How often disk space and the clock's note are looked after, ms.
const HOUSEKEEP_EVERY_MS: u64 = 10_000;
/// Lines of a node's last words.
const LAST_LINES_MAX: usize = 10;
/// Orphans collected from one line of the log to the next.
const ORPHANS_LOGGED: u64 = 1_000;
/// Pause before a part of PID 1 that failed is started again, ms.
const PART_PAUSE_MS: u64 = 1_000;

/// Something that happened.
#[derive(Debug)]
pub(crate) enum Event {
    /// Somebody at the console.
    Answered(Answer),
    /// A child is back from another node.
    Came(For, Result<errand::Outcome, String>),
    /// The owner of the hypervisor calls.
    Caller(std::os::fd::OwnedFd),
    /// Children may have ended.
    Children,
    /// A command about the vault went as far as it could.
    Commanded(Box<(Session, Outcome)>),
    /// The node of this life has ended, and its last lines are in the log.
    Ended { life: u64, end: End },
    /// A part of PID 1 failed.
    Failed { part: &'static str, why: String },
    /// A round of housekeeping is done.
    Housekept(Box<Prepared>),
    /// A document that the node of this life took is kept, or why not.
    Kept {
        life: u64,
        n: u64,
        error: Option<String>,
    },
    /// The control channel of the node of this life broke.
    Lost { life: u64, reason: String },
    /// The network or the clock changed.
    Network(News),
    /// An attempt to open the vault and the data is over; with what was typed for it.
    Opened(Box<Opened>),
    /// All sources were read together with a configuration that somebody pasted.
    Pasted(Box<(Settings, ConsoleDocument)>),
    /// Somebody pressed the button.
    PowerButton,
    /// The node of this life said something.
    Said { life: u64, message: ToInit },
    /// The sources of the configuration were read again.
    Settings(Box<Settings>),
    /// A signal asks for this.
    Signal(PowerAction),
    /// A deadline passed.
    Tick,
    /// The locked vault was opened again, or why not.
    Unlocked(Option<Box<Waiting>>),
}

/// The machine, from the end of the boot to its own.
#[derive(Debug)]
pub(crate) struct Machine {
    log: Log,
    events: mpsc::Sender<Event>,
    facts: Facts,
    told: MachineFacts,
    /// Absent on a machine whose console cannot be opened.
    console: Option<Console>,
    /// The owner of the hypervisor, looking in.
    callers: Vec<Console>,
    status: Option<NodeStatus>,
    shown: Option<NodeStatus>,
    settings: Settings,
    keeper: Arc<Keeper>,
    asking: Asking,
    /// What somebody typed for an attempt.
    offer: Offer,
    /// What the vault waits for.
    waiting: Option<Waiting>,
    /// An attempt is under way.
    opening: bool,
    /// A command about the vault that waits for somebody.
    session: Option<Session>,
    /// A command is being tried.
    working: bool,
    /// What the vault is to be made of anew, once the node has ended.
    anew: Option<ConsoleDocument>,
    /// Where the vault lies.
    vault_at: Option<std::path::PathBuf>,
    /// Why another node gave nothing, as the log has it.
    refused_lately: Option<String>,
    /// Away while a round of housekeeping or an attempt to open it is under way.
    prepared: Option<Box<Prepared>>,
    state_dir: std::path::PathBuf,
    supervisor: Supervisor,
    node: Option<Node>,
    life: u64,
    network: Network,
    watchdog: Option<Watchdog>,
    shutdown: Option<Shutdown>,
    /// The device to be erased on the way down.
    reset: Option<std::path::PathBuf>,
    alone: bool,
    orphans: u64,
    timers: Timers,
}

/// When each thing is due next, ms after the kernel's start.
#[derive(Debug, Default)]
struct Timers {
    feed: u64,
    housekeep: u64,
    note: u64,
    /// Absent while there is a right configuration, or while it is read.
    reread: Option<u64>,
    /// Absent while the network runs.
    network: Option<u64>,
    /// Absent while the vault is open, or while it is being opened.
    open: Option<u64>,
    /// When a command that nobody goes on with is forgotten.
    session: Option<u64>,
    /// When words that nobody confirmed are forgotten.
    words: Option<u64>,
}

impl Machine {
    pub(crate) fn new(
        booted: Booted,
        log: Log,
        events: mpsc::Sender<Event>,
        watchdog: Option<Watchdog>,
        console: Option<Console>,
    ) -> Self {
        let Booted {
            mut facts,
            opened,
            keeper,
        } = booted;
        facts.watchdog = watchdog.as_ref().map(|one| one.kind().to_owned());
        let settings = opened.settings.clone();
        let mut machine = Self {
            console,
            watchdog,
            ..Self::at_rest(facts, keeper, settings, log, events)
        };
        let now = boot_ms();
        machine.opened(opened, now);
        machine.start_network(now);
        machine
    }

    /// Nobody is there, no disk was looked at, and nothing runs.
    fn at_rest(
        facts: Facts,
        keeper: Arc<Keeper>,
        settings: Settings,
        log: Log,
        events: mpsc::Sender<Event>,
    ) -> Self {
        let now = boot_ms();
        Self {
            log,
            network: Network::new(events.clone()),
            events,
            told: MachineFacts::default(),
            console: None,
            callers: Vec::new(),
            status: None,
            shown: None,
            state_dir: std::path::PathBuf::new(),
            prepared: None,
            keeper,
            asking: Asking::default(),
            offer: Offer::default(),
            waiting: None,
            opening: false,
            session: None,
            working: false,
            anew: None,
            vault_at: None,
            refused_lately: None,
            supervisor: Supervisor::new(now),
            node: None,
            life: 0,
            watchdog: None,
            shutdown: None,
            reset: None,
            alone: false,
            orphans: 0,
            timers: Timers {
                feed: now,
                housekeep: now + HOUSEKEEP_EVERY_MS,
                note: now + HOUSEKEEP_EVERY_MS,
                reread: None,
                network: None,
                open: None,
                session: None,
                words: None,
            },
            facts,
            settings,
        }
    }

    /// Takes one event and does what is due. A failure in here is noted and passed over: PID 1
    /// goes on.
    pub(crate) fn turn(&mut self, event: Event) {
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            self.handle(event);
            self.work(boot_ms());
        }));
        if let Err(payload) = outcome {
            let why = panic_text(&*payload);
            self.log.error(format_args!(
                "a part of PID 1 failed and was passed over: {why}"
            ));
            self.facts.problems.internal(why);
        }
    }

    /// How long nothing is due.
    pub(crate) fn idle(&self) -> Duration {
        let timers = &self.timers;
        let due = [
            Some(timers.feed),
            self.prepared.is_some().then_some(timers.housekeep),
            timers.reread,
            timers.network,
            self.supervisor.deadline(),
            self.shutdown.as_ref().and_then(Shutdown::deadline),
            timers.open,
            timers.session,
            timers.words,
            self.errand_due(),
        ];
        let next = due.into_iter().flatten().min().unwrap_or(timers.feed);
        Duration::from_millis(next.saturating_sub(boot_ms()))
    }

    fn handle(&mut self, event: Event) {
        let now = boot_ms();
        match event {
            Event::Answered(answer) => self.answered(answer, now),
            Event::Caller(fd) => self.called(fd),
            Event::Came(of, outcome) => self.came(&of, outcome, now),
            Event::Children => self.collect(),
            Event::Commanded(done) => self.commanded(done.0, done.1, now),
            Event::Ended { life, end } => self.ended(life, end, now),
            Event::Failed { part, why } => self.failed(part, &why, now),
            Event::Housekept(prepared) => self.housekept(prepared),
            Event::Lost { life, reason } => self.lost(life, &reason, now),
            Event::Network(news) => self.network_news(news),
            Event::Opened(opened) => self.opened(*opened, now),
            Event::PowerButton => self.go_down(PowerAction::Poweroff, "the power button", now),
            Event::Kept { life, n, error } => self.kept(life, n, error),
            Event::Said { life, message } if self.is_current(life) => self.said(message, now),
            Event::Said { .. } | Event::Tick => {}
            Event::Pasted(pasted) => self.pasted(pasted.0, pasted.1, now),
            Event::Settings(settings) => self.reread_is_done(*settings, now),
            Event::Signal(action) => self.go_down(action, "a signal", now),
            Event::Unlocked(waiting) => self.unlocked(waiting.map(|why| *why), now),
        }
    }

    /// Does everything that is due.
    fn work(&mut self, now: u64) {
        self.step_down(now);
        while let Some(order) = self.supervisor.order(now) {
            self.obey(order, now);
        }
        self.guard_life(now);
        self.housekeep(now);
        self.reread(now);
        self.keep_open(now);
        self.forget_command(now);
        self.make_anew();
        if self.timers.network.is_some_and(|at| now >= at) {
            self.start_network(now);
        }
        self.tell();
    }

    /// Whoever looks on.
    fn consoles(&self) -> impl Iterator<Item = &Console> {
        self.console.iter().chain(&self.callers)
    }

    fn is_current(&self, life: u64) -> bool {
        self.node.as_ref().is_some_and(|node| node.life() == life)
    }
}

/// The node: started, asked, ended.
impl Machine {
    fn obey(&mut self, order: Order, now: u64) {
        match (order, &self.node) {
            (Order::Spawn, _) => self.spawn(now),
            (Order::Ask(n), Some(node)) => {
                if !node.send(ToNode::Health { n }) {
                    self.log.warn("the node does not read its messages");
                }
            }
            (Order::Abort, Some(node)) => {
                self.log
                    .error("the node does not answer for its health: aborting it");
                node.signal(Signal::SIGABRT);
            }
            (Order::Kill, Some(node)) => {
                self.log.error("the node does not end: killing it");
                node.signal(Signal::SIGKILL);
            }
            (Order::Drain, Some(node)) => {
                let reason = match &self.waiting {
                    Some(_) => "the vault was locked",
                    None => "the configuration changed",
                };
                let reason = reason.to_owned();
                let deadline_ms = supervise::DRAIN_MS_MAX;
                let locked = self.waiting.is_some();
                if !node.send(ToNode::Drain {
                    deadline_ms,
                    reason,
                    locked,
                }) {
                    node.signal(Signal::SIGTERM);
                }
            }
            // It has ended in the meantime.
            (_, None) => {}
        }
    }

    fn spawn(&mut self, now: u64) {
        if self.keeper.is_locked() {
            // Without its vault it would make a key of its own: no such key is ever shown.
            self.log.warn("the node waits until the vault is open");
            self.supervisor.idle(now);
            if self.waiting.is_none() {
                // The one before locked it, and ended before it said so: somebody is asked all the same.
                self.lock(false, "a node that ended", now);
            }
            return;
        }
        self.life += 1;
        match Node::spawn(self.life, &self.keeper, &self.log, self.events.clone()) {
            Ok(node) => {
                self.supervisor.spawned(now);
                stage::reach(&mut self.facts.stages, Stage::NodeStart);
                node.send(ToNode::Start {
                    config: Box::new(self.settings.config.clone()),
                    state_dir: self.state_dir.display().to_string(),
                    facts: Box::new(self.facts.told()),
                    vault: self.keeper.is_open(),
                    records: self.settings.records.clone(),
                });
                self.node = Some(node);
                self.keeper.events().hand_over_again();
                self.tell_events();
                self.alone = false;
            }
            Err(error) => {
                self.supervisor.exited(now);
                self.facts.problems.node = vec![node_problem(error.to_string())];
                self.log.error(error);
            }
        }
    }

    /// Collects whatever ended; what is left for later is asked for again.
    fn collect(&mut self) {
        let round = reap::collect();
        self.alone = round.alone;
        for (pid, end) in round.ended {
            if self.node.as_ref().is_some_and(|node| node.pid() == pid)
                && let Some(node) = self.node.take()
            {
                let events = self.events.clone();
                tokio::spawn(async move {
                    let life = node.life();
                    node.last_lines().await;
                    // The loop ends with the machine only.
                    let _ = events.send(Event::Ended { life, end }).await;
                });
            } else {
                self.orphans += 1;
                if self.orphans.is_multiple_of(ORPHANS_LOGGED) {
                    self.log.info(format_args!(
                        "{} orphans collected since the boot",
                        self.orphans
                    ));
                }
            }
        }
        if round.more && self.events.try_send(Event::Children).is_err() {
            // The loop is busy; the next tick looks again.
            self.timers.feed = 0;
        }
    }

    fn ended(&mut self, life: u64, end: End, now: u64) {
        self.status = None;
        self.facts.problems.reported.clear();
        let unexpected = self.supervisor.exited(now);
        if !unexpected {
            self.log.info(format_args!("the node {end}"));
            return;
        }
        let lines = self.log.last_of(life, LAST_LINES_MAX);
        let words = std::iter::once(end.to_string())
            .chain(lines)
            .collect::<Vec<_>>()
            .join("\n");
        self.log
            .error(format_args!("the node {end}; it is started again"));
        self.facts.last_words = Some(words);
        self.facts.node_restarts = self.supervisor.restarts();
        self.facts.problems.reported.clear();
        self.facts.problems.node = vec![node_problem(format!("the node {end}"))];
    }

    fn lost(&mut self, life: u64, reason: &str, now: u64) {
        if self.is_current(life) && self.shutdown.is_none() {
            self.log
                .warn(format_args!("no channel to the node any more: {reason}"));
            self.supervisor.lost(now);
        }
    }

    fn said(&mut self, message: ToInit, now: u64) {
        match message {
            ToInit::Fault { kind } => self.fault(&kind),
            ToInit::Health { n, ok, detail } => {
                if !ok {
                    self.log.warn(format_args!("the node is unwell: {detail}"));
                }
                self.supervisor.answered(n, ok, now);
            }
            ToInit::KeepConfig { n, document } => self.keep_config(n, document),
            ToInit::Power { action, by } => self.go_down(action, &by, now),
            ToInit::Ready { status } => {
                self.supervisor.ready(now);
                stage::reach(&mut self.facts.stages, Stage::Ready);
                self.facts.problems.node.clear();
                self.log
                    .info(format_args!("the node serves port {}", status.port));
                self.learn(status);
            }
            ToInit::Status { status } => self.learn(status),
            ToInit::VaultEventsWritten { count } => {
                self.keeper.events().written(count);
                self.tell_events();
            }
            ToInit::VaultLocked { hard, by } => self.lock(hard, &by, now),
        }
    }

    fn learn(&mut self, status: NodeStatus) {
        let told = &self.facts.problems.config;
        let news = status.problems.iter().filter(|one| !told.contains(one));
        self.facts.problems.reported = news.cloned().collect();
        self.status = Some(status);
    }

    fn fault(&mut self, kind: &str) {
        if !self.facts.fault_injection {
            self.log
                .warn("a fault was asked for; the hypervisor did not switch them on");
            return;
        }
        self.log.warn(format_args!("fault injected: {kind}"));
        match Fault::parse(kind) {
            Some(Fault::Hang) => loop {
                std::thread::park();
            },
            Some(Fault::NetPanic) => self.network.fail(),
            Some(Fault::Orphans) => make_orphans(),
            Some(Fault::Panic) => panic!("a fault was injected"),
            None => self.log.warn("no such fault"),
        }
    }
}

/// Disk, network, clock.
impl Machine {
    fn housekeep(&mut self, now: u64) {
        if now < self.timers.housekeep || self.shutdown.is_some() {
            return;
        }
        let Some(mut prepared) = self.prepared.take() else {
            return;
        };
        let note = now >= self.timers.note;
        if note {
            self.timers.note = now + clock::NOTE_EVERY.as_millis() as u64;
        }
        self.blocking("housekeeping", move || {
            data::refresh(&mut prepared);
            if note
                && prepared.state.mode == "mounted"
                && let Err(error) = clock::note(&prepared.state_dir)
                && !is_told_with_the_data(error.kind())
            {
                tracing::warn!(%error, "the time is not noted for a start without a clock");
            }
            Event::Housekept(prepared)
        });
    }

    fn housekept(&mut self, prepared: Box<Prepared>) {
        self.timers.housekeep = boot_ms() + HOUSEKEEP_EVERY_MS;
        self.facts.data = prepared.state.clone();
        self.facts.problems.data.clone_from(&prepared.problems);
        self.prepared = Some(prepared);
    }

    /// Runs what may wait for a disk on a thread of its own.
    fn blocking(&self, part: &'static str, work: impl FnOnce() -> Event + Send + 'static) {
        let events = self.events.clone();
        tokio::spawn(async move {
            let event = tokio::task::spawn_blocking(work)
                .await
                .unwrap_or_else(|error| {
                    let why = error.to_string();
                    Event::Failed { part, why }
                });
            // The loop ends with the machine only.
            let _ = events.send(event).await;
        });
    }

    fn failed(&mut self, part: &'static str, why: &str, now: u64) {
        self.log
            .error(format_args!("{part} failed and is started again: {why}"));
        self.facts.problems.internal(format!("{part}: {why}"));
        if part == Network::PART {
            self.timers.network = Some(now + PART_PAUSE_MS);
        }
        self.command_failed(part);
    }

    fn start_network(&mut self, now: u64) {
        self.timers.network = None;
        self.facts.problems.network.clear();
        if let Err(error) = self.network.start(&self.settings) {
            self.log
                .error(format_args!("the network cannot be started: {error}"));
            self.facts.problems.network = vec![Problem {
                code: "network-failed".to_owned(),
                text: error.to_string(),
                hint: "it is tried again; see the log".to_owned(),
            }];
            self.timers.network = Some(now + PART_PAUSE_MS);
        }
    }

    fn network_news(&mut self, news: News) {
        match news {
            News::Links { links, dns, ready } => {
                if ready {
                    stage::reach(&mut self.facts.stages, Stage::Network);
                }
                self.network_is(ready);
                self.facts.links = links;
                self.facts.dns = dns;
            }
            News::Log { level, message } => self.log.write(level, "net", message),
            News::Synced => self.facts.clock = Clock::Sntp,
        }
    }

    /// Tells the node and the console what changed.
    fn tell(&mut self) {
        let facts = self.facts.told();
        let facts_changed = facts != self.told;
        if facts_changed || self.status != self.shown {
            for console in self.consoles() {
                console.update(facts.clone(), self.status.clone());
            }
            self.shown.clone_from(&self.status);
        }
        if !facts_changed {
            return;
        }
        if let Some(node) = &self.node {
            node.send(ToNode::Facts {
                facts: Box::new(facts.clone()),
            });
        }
        self.told = facts;
    }
}

/// Staying alive and going down.
impl Machine {
    /// Feeds the watchdog while the node is well, or was until lately. Without health for longer
    /// the machine reboots, with or without a watchdog.
    fn guard_life(&mut self, now: u64) {
        if now < self.timers.feed || self.shutdown.is_some() {
            return;
        }
        self.timers.feed = now + FEED_EVERY_MS;
        if !self.supervisor.alive(now) {
            self.go_down(
                PowerAction::Reboot,
                "the node being unwell for too long",
                now,
            );
        } else if let Some(watchdog) = &self.watchdog {
            watchdog.feed();
        }
    }

    fn go_down(&mut self, action: PowerAction, by: &str, now: u64) {
        if self.shutdown.is_some() {
            self.log
                .info(format_args!("{by}: the machine goes down already"));
            return;
        }
        self.log
            .warn(format_args!("going down ({action:?}) because of {by}"));
        // Its time-out is longer than the bound: this is its last meal.
        if let Some(watchdog) = &self.watchdog {
            watchdog.feed();
        }
        shutdown::guard(action, Arc::clone(&self.keeper));
        for console in self.consoles() {
            console.say(format!("alknet: going down ({action:?}) because of {by}"));
        }
        self.supervisor.hold();
        self.network.quiet();
        self.shutdown = Some(Shutdown::new(action, now));
        if let Some(node) = &self.node {
            let drain = ToNode::Drain {
                deadline_ms: shutdown::DRAIN_MS_MAX,
                reason: format!("the machine goes down: {by}"),
                locked: false,
            };
            if !node.send(drain) {
                node.signal(Signal::SIGTERM);
            }
        }
    }

    fn step_down(&mut self, now: u64) {
        let node_gone = self.node.is_none();
        let Some(shutdown) = &mut self.shutdown else {
            return;
        };
        while let Some(step) = shutdown.step(now, node_gone, self.alone) {
            match step {
                Step::Terminate => shutdown::signal_all(Signal::SIGTERM),
                Step::Kill => shutdown::signal_all(Signal::SIGKILL),
                Step::Close => {
                    // A machine that is off feeds nobody; one that reboots stays guarded.
                    if shutdown.action() == PowerAction::Poweroff
                        && let Some(watchdog) = self.watchdog.take()
                    {
                        watchdog.disarm();
                    }
                    // Memory outlives a reset, and a machine that is off is a file somewhere.
                    self.keeper.lock();
                    shutdown::close(shutdown.action(), self.reset.as_deref());
                }
            }
        }
    }
}

/// Of a full or read-only disk the data's own problems tell.
fn is_told_with_the_data(kind: io::ErrorKind) -> bool {
    use io::ErrorKind::{ReadOnlyFilesystem, StorageFull};
    matches!(kind, StorageFull | ReadOnlyFilesystem)
}

fn node_problem(text: String) -> Problem {
    Problem {
        code: "node-failed".to_owned(),
        text,
        hint: "it is started again by itself; its last words are in node/info".to_owned(),
    }
}

/// What a panic said.
pub(crate) fn panic_text(payload: &(dyn Any + Send)) -> String {
    let text = payload
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned());
    text.or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without words".to_owned())
}

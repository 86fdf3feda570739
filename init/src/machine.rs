//! The loop of PID 1: everything that happens arrives here as an event, and whatever is due is
//! done in a turn that never blocks.

mod commands;
mod configuration;
mod going_down;
mod node;
mod reset;
#[cfg(test)]
mod tests;
mod upkeep;
mod vault;
mod words;

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use alknet_provisioning::ConsoleDocument;
use alknet_vault::slots::FirstBootPermissions;
use tokio::sync::mpsc;

use self::{configuration::ConfigChanges, reset::Reset};

use crate::{
    boot::{BootResult, OpenedData},
    child::NodeProcess,
    console::{ConsoleInput, InitConsole},
    control::{InitMessage, MachineFacts, NodeMessage, NodeStatus, PowerAction},
    data::PreparedData,
    facts::InitFacts,
    helper_task,
    link_status::LinkStatus,
    log::InitLog,
    network::{InitNetwork, NetworkEvent},
    reap::ProcessExit,
    settings::NodeSettings,
    shutdown::Shutdown,
    stage::boot_ms,
    supervise::NodeSupervisor,
    vault::{
        CommandOutcome, CommandSession, HelperPurpose, UnlockCredentials, VaultDialog, VaultHandle,
        VaultWait,
    },
    watchdog::Watchdog,
    wipe,
};

/// Events that wait for the loop; a sender of more waits in turn.
pub(crate) const EVENTS_MAX: usize = 256;
/// How often disk space and the clock's note are looked after, ms.
const HOUSEKEEP_EVERY_MS: u64 = 10_000;
/// Pause before a part of PID 1 that failed is started again, ms.
const PART_PAUSE_MS: u64 = 1_000;

/// Something that happened.
#[derive(Debug)]
pub(crate) enum MachineEvent {
    /// The user answered at the console.
    Answered(ConsoleInput),
    /// A child is back from another node.
    Came(HelperPurpose, Result<helper_task::HelperOutcome, String>),
    /// The owner of the hypervisor calls.
    Caller(std::os::fd::OwnedFd),
    /// Children may have ended.
    Children,
    /// Permissions of the first boot were withdrawn: what the vault still permits, or why it permits what it did.
    Concluded(Result<FirstBootPermissions, String>),
    /// A command about the vault went as far as it could.
    Commanded(Box<(CommandSession, CommandOutcome)>),
    /// The node of this life has ended, and its last lines are in the log.
    Ended { life: u64, end: ProcessExit },
    /// A part of PID 1 failed.
    Failed { part: &'static str, why: String },
    /// A round of housekeeping is done.
    Housekept(Box<PreparedData>),
    /// A document that the node of this life took is kept, or why not.
    Kept {
        life: u64,
        n: u64,
        error: Option<String>,
    },
    /// The control channel of the node of this life broke.
    Lost { life: u64, reason: String },
    /// The network or the clock changed.
    Network(NetworkEvent),
    /// An attempt to open the vault and the data is over; with what was typed for it.
    Opened(Box<OpenedData>),
    /// All sources were read together with a configuration that the user pasted.
    Pasted(Box<(NodeSettings, ConsoleDocument)>),
    /// The power button was pressed.
    PowerButton,
    /// The disk has the mark of a factory reset, or why not.
    ResetMarked(Result<(), String>),
    /// The node of this life said something.
    Said { life: u64, message: InitMessage },
    /// The sources of the configuration were read again.
    Settings {
        config_changes: u64,
        settings: Box<NodeSettings>,
    },
    /// That the owner was reminded of words that are not confirmed is on the disk, or why not.
    ReminderNoted(Result<(), String>),
    /// A signal asks for this.
    Signal(PowerAction),
    /// A deadline passed.
    Tick,
    /// After a hard lock the TPM opens nothing, or why it still does.
    TpmClosed(Result<(), String>),
    /// The locked vault was opened again, or why not.
    Unlocked(Option<Box<VaultWait>>),
    /// That the owner has the words is on the disk, or why not.
    WordsNoted(Result<(), String>),
}

/// The machine, from the end of the boot to its own.
#[derive(Debug)]
pub(crate) struct InitMachine {
    log: InitLog,
    events: mpsc::Sender<MachineEvent>,
    facts: InitFacts,
    told: MachineFacts,
    /// Absent on a machine whose console cannot be opened.
    console: Option<InitConsole>,
    /// The owner of the hypervisor, looking in.
    callers: Vec<InitConsole>,
    status: Option<NodeStatus>,
    shown: Option<NodeStatus>,
    settings: NodeSettings,
    keeper: Arc<VaultHandle>,
    asking: VaultDialog,
    /// What the user typed for an attempt.
    offer: UnlockCredentials,
    /// What the vault waits for.
    waiting: Option<VaultWait>,
    /// An attempt is under way.
    opening: bool,
    /// A command about the vault that waits for the user.
    session: Option<CommandSession>,
    /// A command is being tried, or the vault changed for another reason.
    working: bool,
    /// Permissions of the first boot that are to be withdrawn in the vault, until they are.
    concluding: FirstBootPermissions,
    /// That failed, or is being tried: it waits until the vault is opened again, or until more are to be withdrawn.
    put_off: bool,
    /// Faults that were injected: the next attempt to open the vault panics, and the next round of housekeeping.
    breaks_opening: bool,
    breaks_housekeeping: bool,
    /// Configurations that came while the machine ran.
    config_changes: ConfigChanges,
    /// The configuration whose words are to become the new vault, once the node has ended.
    remake_from: Option<ConsoleDocument>,
    /// Where the vault lies.
    vault_at: Option<std::path::PathBuf>,
    /// Why the TPM still opens a vault that was locked hard.
    tpm_is_open: Option<String>,
    /// Why another node gave nothing, as the log has it.
    refused_lately: Option<String>,
    /// Away while a round of housekeeping or an attempt to open it is under way.
    prepared: Option<Box<PreparedData>>,
    state_dir: std::path::PathBuf,
    supervisor: NodeSupervisor,
    node: Option<NodeProcess>,
    life: u64,
    network: InitNetwork,
    link_status: LinkStatus,
    watchdog: Option<Watchdog>,
    shutdown: Option<Shutdown>,
    /// A factory reset under way.
    reset: Option<Reset>,
    alone: bool,
    orphans: u64,
    timers: MachineTimers,
}

/// When each thing is due next, ms after the kernel's start.
#[derive(Debug, Default)]
struct MachineTimers {
    feed: u64,
    housekeep: u64,
    note: u64,
    /// Absent while there is a right configuration, or while it is read.
    reread: Option<u64>,
    /// Absent while the network runs.
    network: Option<u64>,
    /// Absent while the vault is open, or while it is being opened.
    open: Option<u64>,
    /// When PID 1 forgets a command whose prompt gets no input.
    session: Option<u64>,
    /// When what was typed for a new vault is forgotten.
    typed: Option<u64>,
    /// When new words that the owner has not confirmed are forgotten.
    words: Option<u64>,
}

impl InitMachine {
    pub(crate) fn new(
        booted: BootResult,
        log: InitLog,
        events: mpsc::Sender<MachineEvent>,
        watchdog: Option<Watchdog>,
        console: Option<InitConsole>,
    ) -> Self {
        let BootResult {
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

    /// No console is attached, no disk was looked at, and nothing runs.
    fn at_rest(
        facts: InitFacts,
        keeper: Arc<VaultHandle>,
        settings: NodeSettings,
        log: InitLog,
        events: mpsc::Sender<MachineEvent>,
    ) -> Self {
        let now = boot_ms();
        Self {
            log,
            network: InitNetwork::new(events.clone()),
            link_status: LinkStatus::default(),
            events,
            told: MachineFacts::default(),
            console: None,
            callers: Vec::new(),
            status: None,
            shown: None,
            state_dir: std::path::PathBuf::new(),
            prepared: None,
            keeper,
            asking: VaultDialog::default(),
            offer: UnlockCredentials::default(),
            waiting: None,
            opening: false,
            session: None,
            working: false,
            concluding: FirstBootPermissions::default(),
            put_off: false,
            breaks_opening: false,
            breaks_housekeeping: false,
            config_changes: ConfigChanges::default(),
            remake_from: None,
            vault_at: None,
            tpm_is_open: None,
            refused_lately: None,
            supervisor: NodeSupervisor::new(now),
            node: None,
            life: 0,
            watchdog: None,
            shutdown: None,
            reset: None,
            alone: false,
            orphans: 0,
            timers: MachineTimers {
                feed: now,
                housekeep: now + HOUSEKEEP_EVERY_MS,
                note: now + HOUSEKEEP_EVERY_MS,
                reread: None,
                network: None,
                open: None,
                session: None,
                typed: None,
                words: None,
            },
            facts,
            settings,
        }
    }

    /// Takes one event and does what is due. A failure in here is noted and passed over: PID 1
    /// goes on.
    pub(crate) fn turn(&mut self, event: MachineEvent) {
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
            self.reset.as_ref().and_then(Reset::deadline),
            timers.session,
            timers.typed,
            timers.words,
            self.task_due(),
        ];
        let next = due.into_iter().flatten().min().unwrap_or(timers.feed);
        Duration::from_millis(next.saturating_sub(boot_ms()))
    }

    fn handle(&mut self, event: MachineEvent) {
        let now = boot_ms();
        if !self.takes(&event) {
            return;
        }
        match event {
            MachineEvent::Answered(answer) => wipe::after(|| self.answered(answer, now)),
            MachineEvent::Caller(fd) => self.called(fd),
            MachineEvent::Came(of, outcome) => self.came(&of, outcome, now),
            MachineEvent::Children => self.collect(),
            MachineEvent::Concluded(outcome) => self.concluded(outcome),
            MachineEvent::Commanded(done) => self.commanded(done.0, done.1, now),
            MachineEvent::Ended { life, end } => self.ended(life, end, now),
            MachineEvent::Failed { part, why } => self.failed(part, &why, now),
            MachineEvent::Housekept(prepared) => self.housekept(prepared),
            MachineEvent::Lost { life, reason } => self.lost(life, &reason, now),
            MachineEvent::Network(news) => self.network_news(news),
            MachineEvent::Opened(opened) => self.opened(*opened, now),
            MachineEvent::PowerButton => {
                self.go_down(PowerAction::Poweroff, "the power button", now)
            }
            MachineEvent::Kept { life, n, error } => self.kept(life, n, error),
            MachineEvent::ReminderNoted(outcome) => self.reminder_noted(outcome),
            MachineEvent::ResetMarked(outcome) => self.reset_marked(outcome, now),
            MachineEvent::Said { life, message } if self.is_current(life) => {
                self.said(message, now)
            }
            MachineEvent::Said { .. } | MachineEvent::Tick => {}
            MachineEvent::Pasted(pasted) => self.pasted(pasted.0, pasted.1, now),
            MachineEvent::Settings {
                config_changes,
                settings,
            } => self.reread_is_done(config_changes, *settings, now),
            MachineEvent::Signal(action) => self.go_down(action, "a signal", now),
            MachineEvent::TpmClosed(outcome) => self.tpm_closed(outcome),
            MachineEvent::Unlocked(waiting) => self.unlocked(waiting.map(|why| *why), now),
            MachineEvent::WordsNoted(outcome) => self.words_noted(outcome),
        }
    }

    /// Does everything that is due.
    fn work(&mut self, now: u64) {
        self.step_down(now);
        loop {
            let computed = self.computed();
            let Some(order) = self.supervisor.order(now, computed) else {
                break;
            };
            self.obey(order, now);
        }
        self.guard_life(now);
        self.housekeep(now);
        self.reread(now);
        self.keep_open(now);
        self.wait_for_mark(now);
        self.forget_command(now);
        self.remake_vault();
        if self.timers.network.is_some_and(|at| now >= at) {
            self.start_network(now);
        }
        // Last: the node and the consoles hear once of everything that this turn changed.
        self.tell_link();
        self.tell();
    }

    /// The machine's own console and those of callers at the vsock.
    fn consoles(&self) -> impl Iterator<Item = &InitConsole> {
        self.console.iter().chain(&self.callers)
    }

    fn is_current(&self, life: u64) -> bool {
        self.node.as_ref().is_some_and(|node| node.life() == life)
    }

    /// Runs what may wait for a disk on a thread of its own, which keeps nothing of it. Where it ends in a panic, which is an event as well,
    /// `instead` comes of it: whatever the loop waits for comes.
    fn blocking(
        &self,
        part: &'static str,
        instead: MachineEvent,
        work: impl FnOnce() -> MachineEvent + Send + 'static,
    ) {
        let events = self.events.clone();
        tokio::spawn(async move {
            let event = match tokio::task::spawn_blocking(|| wipe::after(work)).await {
                Ok(event) => event,
                Err(error) => {
                    let why = error.to_string();
                    let _ = events.send(MachineEvent::Failed { part, why }).await;
                    instead
                }
            };
            // The loop ends with the machine only.
            let _ = events.send(event).await;
        });
    }

    fn failed(&mut self, part: &'static str, why: &str, now: u64) {
        self.configuration_failed(part, now);
        self.log
            .error(format_args!("{part} failed and is started again: {why}"));
        self.facts.problems.internal(format!("{part}: {why}"));
        if part == InitNetwork::PART {
            self.timers.network = Some(now + PART_PAUSE_MS);
        }
        self.command_failed(part);
    }

    /// Neighbours hear why the machine serves nothing, as long as it serves nothing.
    fn tell_link(&mut self) {
        let is_closed = self.node.is_none() && self.shutdown.is_none();
        let waiting = self.waiting.as_ref().filter(|_| is_closed);
        let code = waiting.map(|waiting| waiting.problem.code.as_str());
        self.link_status.say(code);
    }

    /// Tells the node and the console what changed.
    fn tell(&mut self) {
        let facts = self.facts.snapshot();
        let facts_changed = facts != self.told;
        if facts_changed || self.status != self.shown {
            for console in self.consoles() {
                console.update(facts.clone(), self.status.clone());
            }
            self.shown.clone_from(&self.status);
        }
        // The status came from the node itself.
        if !facts_changed {
            return;
        }
        if let Some(node) = &self.node {
            node.send(NodeMessage::Facts {
                facts: Box::new(facts.clone()),
            });
        }
        self.told = facts;
    }
}

/// What a panic said.
pub(crate) fn panic_text(payload: &(dyn Any + Send)) -> String {
    // `panic!` with a literal has a `&str`, with arguments a `String`; `panic_any` may have anything.
    let text = payload
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned());
    text.or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without words".to_owned())
}

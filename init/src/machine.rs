//! The loop of PID 1. Everything that happens arrives here as an event, and each turn does what is
//! due without blocking.

mod cloud;
mod commands;
mod configuration;
mod consoles;
mod going_down;
mod housekeeping;
mod node;
mod reset;
mod storage;
#[cfg(test)]
mod tests;
mod update;
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

pub(crate) use self::consoles::MachineConsole;
use self::{
    cloud::MachineCloud,
    configuration::ConfigChanges,
    reset::Reset,
    storage::{MachineStorage, StorageEvent},
    update::{MachineUpdate, UpdateEvent},
};

use crate::{
    boot::{BootResult, OpenedData},
    child::NodeProcess,
    cloud::CloudPurpose,
    console::{ConsoleId, ConsoleInput},
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

/// Events that wait for the loop. A sender that finds the channel full waits.
pub(crate) const EVENTS_MAX: usize = 256;
/// How often PID 1 checks disk space and writes the clock's note, ms.
const HOUSEKEEP_EVERY_MS: u64 = 10_000;
/// Pause before PID 1 restarts a part of itself that failed, ms.
const PART_PAUSE_MS: u64 = 1_000;

/// Something that happened.
#[derive(Debug)]
pub(crate) enum MachineEvent {
    /// The user answered at this console.
    Answered {
        console: ConsoleId,
        input: ConsoleInput,
    },
    /// A helper's child returned from another node.
    Came(HelperPurpose, Result<helper_task::HelperOutcome, String>),
    /// A helper's child returned from the services of the cloud.
    CloudHelperExited(CloudPurpose, Result<helper_task::HelperOutcome, String>),
    /// The owner of the hypervisor opened a connection to the console.
    Caller(std::os::fd::OwnedFd),
    /// Children may have ended.
    Children,
    /// Result of withdrawing permissions of the first boot: the permissions that the vault still
    /// gives, or why none was withdrawn.
    Concluded(Result<FirstBootPermissions, String>),
    /// The caller at this console hung up. No input of it follows.
    ConsoleGone(ConsoleId),
    /// A command about the vault ended, or needs the user.
    Commanded(Box<(CommandSession, CommandOutcome)>),
    /// The node of this life has ended, and its last lines are in the log.
    Ended { life: u64, end: ProcessExit },
    /// A part of PID 1 failed.
    Failed { part: &'static str, why: String },
    /// A round of housekeeping ended.
    Housekept(Box<PreparedData>),
    /// Whether PID 1 stored a document that the node of this life took over.
    Kept {
        life: u64,
        n: u64,
        error: Option<String>,
    },
    /// The control channel of the node of this life broke.
    Lost { life: u64, reason: String },
    /// The network or the clock changed.
    Network(NetworkEvent),
    /// An attempt to open the vault and the data ended. It brings back what the user typed for it.
    Opened(Box<OpenedData>),
    /// PID 1 read all sources together with a configuration that the user pasted.
    Pasted(Box<(NodeSettings, ConsoleDocument)>),
    /// The power button was pressed.
    PowerButton,
    /// Whether the disk has the mark of a factory reset.
    ResetMarked(Result<(), String>),
    /// The node of this life sent a message.
    Said { life: u64, message: InitMessage },
    /// PID 1 read the sources of the configuration again.
    Settings {
        config_changes: u64,
        settings: Box<NodeSettings>,
    },
    /// Whether the disk has the note that the owner was reminded of unconfirmed words.
    ReminderNoted(Result<(), String>),
    /// A signal requests this action.
    Signal(PowerAction),
    /// A piece of work about storage ended.
    Storage(Box<StorageEvent>),
    /// A deadline passed.
    Tick,
    /// A piece of work about updates ended.
    Update(Box<UpdateEvent>),
    /// Whether the TPM refuses to open slots after a hard lock.
    TpmClosed(Result<(), String>),
    /// An attempt to open the locked vault again ended. With a value, the vault still waits for
    /// that.
    Unlocked(Option<Box<VaultWait>>),
    /// Whether the disk has the note that the owner has the words.
    WordsNoted(Result<(), String>),
}

/// The machine, from the end of the boot to its shutdown.
#[derive(Debug)]
pub(crate) struct InitMachine {
    log: InitLog,
    events: mpsc::Sender<MachineEvent>,
    facts: InitFacts,
    sent_facts: MachineFacts,
    /// The serial line and the screen, as far as the machine has them.
    own_consoles: Vec<MachineConsole>,
    /// Consoles of the hypervisor's owner.
    callers: Vec<MachineConsole>,
    status: Option<NodeStatus>,
    sent_status: Option<NodeStatus>,
    settings: NodeSettings,
    vault: Arc<VaultHandle>,
    asking: VaultDialog,
    /// What the user typed for the next attempt.
    offer: UnlockCredentials,
    /// What the vault waits for, while it is closed.
    waiting: Option<VaultWait>,
    /// Whether an attempt is under way.
    opening: bool,
    /// A command about the vault that waits for the user.
    session: Option<CommandSession>,
    /// Whether a command is being tried, or something else changes the vault.
    working: bool,
    /// Permissions of the first boot that PID 1 still has to withdraw in the vault.
    concluding: FirstBootPermissions,
    /// Whether withdrawing them failed or is being tried. Then it waits until the vault is opened
    /// again, or until there are more permissions to withdraw.
    put_off: bool,
    /// Injected faults: the next attempt to open the vault panics, or the next round of
    /// housekeeping does.
    breaks_opening: bool,
    breaks_housekeeping: bool,
    cloud: MachineCloud,
    /// Counts configurations that came while the machine ran.
    config_changes: ConfigChanges,
    /// The configuration with the words for the new vault, which PID 1 makes once the node has
    /// ended.
    remake_from: Option<ConsoleDocument>,
    /// The device with the vault.
    vault_at: Option<std::path::PathBuf>,
    /// Why the TPM still opens a vault that was locked hard.
    tpm_is_open: Option<String>,
    /// The last reason in the log why another node gave nothing.
    refused_lately: Option<String>,
    /// `None` while a round of housekeeping or an attempt to open the data has it.
    prepared: Option<Box<PreparedData>>,
    state_dir: std::path::PathBuf,
    supervisor: NodeSupervisor,
    node: Option<NodeProcess>,
    life: u64,
    network: InitNetwork,
    link_status: LinkStatus,
    watchdog: Option<Watchdog>,
    shutdown: Option<Shutdown>,
    /// The factory reset under way, if there is one.
    reset: Option<Reset>,
    /// The boot slots, and what happens to them.
    update: MachineUpdate,
    /// The checks of the disks and of what lies on them.
    storage: MachineStorage,
    alone: bool,
    orphans: u64,
    timers: MachineTimers,
}

/// When each thing is due next, in ms after the kernel's start.
#[derive(Debug, Default)]
struct MachineTimers {
    feed: u64,
    housekeep: u64,
    note: u64,
    /// `None` while the configuration is valid, and while it is being read.
    reread: Option<u64>,
    /// `None` while the network runs.
    network: Option<u64>,
    /// `None` while the vault is open or being opened.
    open: Option<u64>,
    /// When PID 1 forgets a command whose prompt gets no input.
    session: Option<u64>,
    /// When PID 1 forgets what the user typed for a new vault.
    typed: Option<u64>,
    /// When PID 1 forgets new words that the owner has not confirmed.
    words: Option<u64>,
}

impl InitMachine {
    pub(crate) fn new(
        booted: BootResult,
        log: InitLog,
        events: mpsc::Sender<MachineEvent>,
        watchdog: Option<Watchdog>,
        own_consoles: Vec<MachineConsole>,
    ) -> Self {
        let BootResult {
            mut facts,
            opened,
            vault,
            update,
        } = booted;
        facts.watchdog = watchdog.as_ref().map(|one| one.kind().to_owned());
        let settings = opened.settings.clone();
        let mut machine = Self {
            own_consoles,
            watchdog,
            cloud: MachineCloud::detect(),
            update: MachineUpdate::new(update),
            ..Self::at_rest(facts, vault, settings, log, events)
        };
        let now = boot_ms();
        machine.opened(opened, now);
        machine.start_network(now);
        machine
    }

    /// A machine without a console, whose disk was not read and that runs nothing.
    fn at_rest(
        facts: InitFacts,
        vault: Arc<VaultHandle>,
        settings: NodeSettings,
        log: InitLog,
        events: mpsc::Sender<MachineEvent>,
    ) -> Self {
        let now = boot_ms();
        Self {
            network: InitNetwork::new(events.clone()),
            link_status: LinkStatus::default(),
            update: MachineUpdate::absent(&log),
            storage: MachineStorage::default(),
            events,
            log,
            sent_facts: MachineFacts::default(),
            own_consoles: Vec::new(),
            callers: Vec::new(),
            status: None,
            sent_status: None,
            state_dir: std::path::PathBuf::new(),
            prepared: None,
            vault,
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
            cloud: MachineCloud::default(),
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

    /// Handles one event and does what is due. PID 1 logs a panic in here and goes on.
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
            self.cloud_due(),
            self.update_due(),
            self.storage_due(),
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
            MachineEvent::Answered { console, input } => {
                wipe::after(|| self.answered(console, input, now));
            }
            MachineEvent::Caller(fd) => self.called(fd),
            MachineEvent::Came(of, outcome) => self.came(&of, outcome, now),
            MachineEvent::CloudHelperExited(purpose, outcome) => {
                self.on_helper_exit(purpose, outcome, now);
            }
            MachineEvent::Children => self.collect(),
            MachineEvent::Concluded(outcome) => self.concluded(outcome),
            MachineEvent::Commanded(done) => self.commanded(done.0, done.1, now),
            MachineEvent::ConsoleGone(console) => self.console_gone(console),
            MachineEvent::Ended { life, end } => self.ended(life, end, now),
            MachineEvent::Failed { part, why } => self.failed(part, &why, now),
            MachineEvent::Housekept(prepared) => self.housekept(prepared),
            MachineEvent::Lost { life, reason } => self.lost(life, &reason, now),
            MachineEvent::Network(news) => self.network_news(news),
            MachineEvent::Opened(mut opened) => {
                if let Some(start) = opened.update.take() {
                    self.update.adopt(*start);
                }
                self.opened(*opened, now);
            }
            MachineEvent::PowerButton => {
                self.go_down(PowerAction::Poweroff, "the power button", now)
            }
            MachineEvent::Kept { life, n, error } => self.config_stored(life, n, error),
            MachineEvent::ReminderNoted(outcome) => self.reminder_noted(outcome),
            MachineEvent::ResetMarked(outcome) => self.reset_marked(outcome, now),
            MachineEvent::Said { life, message } if self.is_current(life) => {
                self.handle_message(message, now)
            }
            MachineEvent::Said { .. } | MachineEvent::Tick => {}
            MachineEvent::Pasted(pasted) => self.pasted(pasted.0, pasted.1, now),
            MachineEvent::Settings {
                config_changes,
                settings,
            } => self.reread_is_done(config_changes, *settings, now),
            MachineEvent::Signal(action) => self.go_down(action, "a signal", now),
            MachineEvent::Storage(event) => self.storage_worked(*event, now),
            MachineEvent::TpmClosed(outcome) => self.tpm_closed(outcome),
            MachineEvent::Update(event) => self.updated(*event, now),
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
        self.attend_cloud(now);
        self.wait_for_mark(now);
        self.forget_command(now);
        self.remake_vault();
        self.attend_update(now);
        self.attend_storage(now);
        if self.timers.network.is_some_and(|at| now >= at) {
            self.start_network(now);
        }
        // Last in a turn, so that the node and the consoles get everything that this turn changed
        // in one message.
        self.tell_link();
        self.tell();
    }

    fn is_current(&self, life: u64) -> bool {
        self.node.as_ref().is_some_and(|node| node.life() == life)
    }

    /// Runs `work`, which may wait for a disk, on its own thread. If the work panics, the loop gets
    /// a `Failed` event, and then `instead`, so the event that the loop waits for always comes.
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
            // The loop ends only with the machine.
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

    /// Tells neighbours why the machine serves nothing, for as long as it serves nothing.
    fn tell_link(&mut self) {
        let is_closed = self.node.is_none() && self.shutdown.is_none();
        let waiting = self.waiting.as_ref().filter(|_| is_closed);
        let code = waiting.map(|waiting| waiting.problem.code.as_str());
        self.link_status.say(code);
    }

    /// Sends what changed to the node and the consoles.
    fn tell(&mut self) {
        let facts = self.facts.snapshot();
        let facts_changed = facts != self.sent_facts;
        if facts_changed || self.status != self.sent_status {
            for console in self.consoles() {
                console.update(facts.clone(), self.status.clone());
            }
            self.sent_status.clone_from(&self.status);
        }
        // The node needs no message about its own status.
        if !facts_changed {
            return;
        }
        if let Some(node) = &self.node {
            node.send(NodeMessage::Facts {
                facts: Box::new(facts.clone()),
            });
        }
        self.sent_facts = facts;
    }
}

/// The text of a panic.
pub(crate) fn panic_text(payload: &(dyn Any + Send)) -> String {
    // `panic!` with a literal has a `&str`, with arguments a `String`. `panic_any` may have
    // anything.
    let text = payload
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned());
    text.or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without words".to_owned())
}

//! The node in the machine's life: start, health questions, end.

use nix::sys::signal::Signal;

use super::{InitMachine, MachineEvent};
use crate::{
    child::NodeProcess,
    control::{InitMessage, MachineDiagnostic, NodeMessage, NodeStatus},
    data,
    fault::{InjectedFault, make_orphans},
    reap::{self, ProcessExit},
    stage::{self, BootStageName},
    supervise::{self, SupervisorAction},
};

/// Lines of a node's last words.
const LAST_LINES_MAX: usize = 10;
/// How many orphans PID 1 collects from one line of the log to the next.
const ORPHANS_LOGGED: u64 = 1_000;

impl InitMachine {
    pub(super) fn obey(&mut self, order: SupervisorAction, now: u64) {
        match (order, &self.node) {
            (SupervisorAction::Spawn, _) => self.spawn(now),
            (SupervisorAction::Ask(n), Some(node)) => {
                if !node.send(NodeMessage::Health { n }) {
                    self.log.warn("the node does not read its messages");
                }
                // The answer for its health must not wait for this call. If the message is lost, the next one follows
                // soon.
                if self.update.is_trial() {
                    node.send(NodeMessage::CallItself);
                }
            }
            (SupervisorAction::Abort, Some(node)) => {
                self.log
                    .error("the node does not answer for its health: aborting it");
                node.signal(Signal::SIGABRT);
            }
            (SupervisorAction::Kill, Some(node)) => {
                self.log.error("the node does not end: killing it");
                node.signal(Signal::SIGKILL);
            }
            (SupervisorAction::Drain, Some(node)) => {
                let reason = match &self.waiting {
                    _ if self.reset.is_some() => "the machine is reset",
                    Some(_) => "the vault was locked",
                    None => "the configuration changed",
                };
                let reason = reason.to_owned();
                let deadline_ms = supervise::DRAIN_MS_MAX;
                let locked = self.waiting.is_some();
                if !node.send(NodeMessage::Drain {
                    deadline_ms,
                    reason,
                    locked,
                }) {
                    node.signal(Signal::SIGTERM);
                }
            }
            // The node has ended in the meantime.
            (_, None) => {}
        }
    }

    /// The processor time that the node has used since its start, ms.
    pub(super) fn computed(&self) -> u64 {
        self.node.as_ref().map_or(0, NodeProcess::computed)
    }

    pub(super) fn spawn(&mut self, now: u64) {
        if self.waiting.is_some() && !self.vault.is_locked() {
            // Without its data the node would make a key of its own as well.
            self.log.warn("the node waits until its data are there");
            self.supervisor.idle(now);
            return;
        }
        if self.vault.is_locked() {
            // Without its vault the node would make a key of its own. PID 1 never shows such a key.
            self.log.warn("the node waits until the vault is open");
            self.supervisor.idle(now);
            if self.waiting.is_none() {
                // The previous node locked the vault, and ended before it reported that. The
                // console has to ask for the unlock all the same.
                self.lock(false, "a node that ended", now);
            }
            return;
        }
        // The number changes before the start, also if the start fails: a late message of the
        // previous life must not count for the next.
        self.life += 1;
        match NodeProcess::spawn(self.life, &self.vault, &self.log, self.events.clone()) {
            Ok(node) => {
                self.supervisor.spawned(now);
                stage::record_stage(&mut self.facts.stages, BootStageName::NodeStart);
                node.send(NodeMessage::Start {
                    config: Box::new(self.settings.config.clone()),
                    state_dir: self.state_dir.display().to_string(),
                    facts: Box::new(self.facts.snapshot()),
                    vault: self.vault.is_open(),
                    records: self.settings.records.clone(),
                    trial: self.update.may_return(),
                });
                self.node = Some(node);
                // Events that the previous node did not confirm may be lost with it.
                self.vault.events().hand_over_again();
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

    /// Collects the children that ended. If some remain, the loop gets the event again.
    pub(super) fn collect(&mut self) {
        let round = reap::collect();
        self.alone = round.alone;
        for (pid, end) in round.ended {
            if self.node.as_ref().is_some_and(|node| node.pid() == pid)
                && let Some(node) = self.node.take()
            {
                let events = self.events.clone();
                // Waiting for the last lines must not hold the loop.
                tokio::spawn(async move {
                    let life = node.life();
                    node.last_lines().await;
                    // The loop ends only with the machine.
                    let _ = events.send(MachineEvent::Ended { life, end }).await;
                });
            } else {
                // With one line for each orphan, a process that forks could fill the log.
                self.orphans += 1;
                if self.orphans.is_multiple_of(ORPHANS_LOGGED) {
                    self.log.info(format_args!(
                        "{} orphans collected since the boot",
                        self.orphans
                    ));
                }
            }
        }
        if round.more && self.events.try_send(MachineEvent::Children).is_err() {
            // The loop is busy, so the next tick collects the rest.
            self.timers.feed = 0;
        }
    }

    pub(super) fn ended(&mut self, life: u64, end: ProcessExit, now: u64) {
        self.status = None;
        self.update.node_ended();
        // Problems that the node reported of itself ended with it.
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

    pub(super) fn lost(&mut self, life: u64, reason: &str, now: u64) {
        // Each channel breaks when its node ends. Only the channel of a node that still runs is
        // news.
        if self.is_current(life) && self.shutdown.is_none() {
            self.log
                .warn(format_args!("no channel to the node any more: {reason}"));
            self.supervisor.lost(now);
        }
    }

    pub(super) fn handle_message(&mut self, message: InitMessage, now: u64) {
        match message {
            InitMessage::CalledItself { result } => self.called_itself(&result, now),
            InitMessage::CheckStorage { n, by } => self.check_storage(n, &by),
            InitMessage::Fault { kind } => self.fault(&kind),
            InitMessage::GiveUpBundle { n } => self.give_up_bundle(n),
            InitMessage::Health { n, ok, detail } => {
                if !ok {
                    self.log.warn(format_args!("the node is unwell: {detail}"));
                }
                let computed = self.computed();
                self.supervisor.answered(n, ok, now, computed);
            }
            InitMessage::KeepConfig { n, document } => self.keep_config(n, document),
            InitMessage::Power { action, by } => self.go_down(action, &by, now),
            InitMessage::Ready { status } => {
                self.supervisor.ready(now);
                stage::record_stage(&mut self.facts.stages, BootStageName::Ready);
                self.facts.problems.node.clear();
                self.log
                    .info(format_args!("the node serves port {}", status.port));
                self.learn(status);
                self.note_key();
                // Once in each start of the machine, and not for each node.
                if std::mem::take(&mut self.cloud.wants_report) {
                    self.cloud.client.report_ready(now);
                }
            }
            InitMessage::Status { status } => self.learn(status),
            InitMessage::Update { n, request, by } => self.update_request(n, request, by, now),
            InitMessage::VaultEventsWritten { count } => {
                self.vault.events().written(count);
                self.tell_events();
            }
            InitMessage::VaultLocked { hard, by } => self.lock(hard, &by, now),
        }
    }

    /// A node without a vault shows a key from now on, which lies on the disk. PID 1 notes that on
    /// the disk.
    fn note_key(&self) {
        let on = &self.facts.data;
        if on.mode != "mounted" || on.cipher.is_some() {
            return;
        }
        let state_dir = self.state_dir.clone();
        let log = self.log.clone();
        // The loop waits for no result of it.
        self.blocking("noting that the node has a key", MachineEvent::Tick, move || {
            if let Err(error) = data::note_key(&state_dir) {
                log.warn(format_args!(
                    "that this node has a key is not noted on its disk, and is noted at the next start: {error}"
                ));
            }
            MachineEvent::Tick
        });
    }

    fn learn(&mut self, status: NodeStatus) {
        // Both processes read the configuration. Problems that PID 1 found in it are listed
        // already.
        let listed = &self.facts.problems.config;
        let news = status.problems.iter().filter(|one| !listed.contains(one));
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
        match InjectedFault::parse(kind) {
            Some(InjectedFault::Hang) => loop {
                std::thread::park();
            },
            Some(InjectedFault::HousekeepPanic) => self.breaks_housekeeping = true,
            Some(InjectedFault::NetPanic) => self.network.fail(),
            Some(InjectedFault::OpenPanic) => self.breaks_opening = true,
            Some(InjectedFault::Orphans) => make_orphans(),
            Some(InjectedFault::Panic) => panic!("a fault was injected"),
            None => self.log.warn("no such fault"),
        }
    }
}

fn node_problem(text: String) -> MachineDiagnostic {
    MachineDiagnostic {
        code: "node-failed".to_owned(),
        text,
        hint: "it is started again by itself; the console shows its last words, and key l the log"
            .to_owned(),
    }
}

//! Requests of the node about updates, and the bundles that it sends.

use std::io::Read;
use std::sync::Arc;

use alknet_core::config::UpdateChannel;
use alknet_vault::slots::SlotType;

use super::{
    InitMachine, MachineEvent, OpenRequest, PASSPHRASE, PIN, QueuedBundle, StagingBundle,
    UpdateEvent, UpdateTicket,
};
use crate::child::BUNDLE_SILENT_MAX;
use crate::clock::ClockSource;
use crate::control::{NodeMessage, PowerAction, UpdateAnswer, UpdatePlan, UpdateRequest};
use crate::facts::ClockState;
use crate::niceness::in_background;
use crate::update::{
    BundleFrameReader, FramesEnd, RefusalCode, RollbackPlan, StageOrder, StagingProgress,
    StartTerms, TrialRequest, UpdateRefusal,
};

/// Bundles whose frames wait behind those of another one. A node sends one at a time.
const BUNDLES_MAX: usize = 4;

/// The version that goes on trial.
#[derive(Debug, PartialEq, Eq)]
enum TrialOf {
    /// The one before the last update.
    Before,
    /// The staged one, on these terms.
    Staged(StartTerms),
}

impl InitMachine {
    /// Handles a request of the node.
    pub(in crate::machine) fn update_request(
        &mut self,
        n: u64,
        request: UpdateRequest,
        by: String,
        now: u64,
    ) {
        let life = self.life;
        let ticket = UpdateTicket { life, n, by };
        match (request, self.busy()) {
            (
                UpdateRequest::Stage {
                    bytes,
                    downgrade,
                    dry_run,
                    unasked,
                    other_source,
                    limited,
                },
                busy,
            ) => {
                let order = StageOrder {
                    by: ticket.by.clone(),
                    bytes,
                    downgrade,
                    dry_run,
                    unasked,
                    other_source,
                    limited,
                    follows_stable: self.settings.config.update.channel == UpdateChannel::Stable,
                };
                self.queue_bundle(ticket, order, busy, now);
            }
            (UpdateRequest::Log, _) => self.read_log(ticket),
            (UpdateRequest::Unscheduled { version, reason }, _) => {
                self.log_unscheduled(ticket, version, reason);
            }
            (_, Some(refusal)) => self.answer(&ticket, refused(&refusal)),
            (
                UpdateRequest::Apply {
                    sha256,
                    agreed_floor: floor,
                    limited,
                    unasked,
                },
                None,
            ) => match self.vault.needs_person().filter(|_| unasked) {
                Some(what) => self.answer(&ticket, refused(&needs_person(what))),
                None => {
                    let terms = StartTerms { sha256, floor };
                    self.begin_trial(ticket, TrialOf::Staged(terms), limited);
                }
            },
            (UpdateRequest::Rollback { limited }, None) => {
                self.begin_trial(ticket, TrialOf::Before, limited);
            }
            (UpdateRequest::Confirm, None) => self.confirm_trial(ticket),
        }
    }

    /// Why no other request than one about the log is taken now.
    fn busy(&self) -> Option<UpdateRefusal> {
        match self.shutdown {
            Some(_) => Some(going_down()),
            None => self.update.busy(),
        }
    }

    /// Reads the log of updates, once at a time.
    fn read_log(&mut self, ticket: UpdateTicket) {
        if self.update.log_request.is_some() {
            let text = "the log of updates is being read already; ask again when it was answered";
            let refusal = UpdateRefusal::new(RefusalCode::Busy, text);
            return self.answer(&ticket, refused(&refusal));
        }
        self.update.log_request = Some(ticket.clone());
        let system = self.update.system.clone();
        self.answer_by(ticket, move || {
            let records = system.records();
            Ok((UpdateAnswer::Log { records }, false))
        });
    }

    /// Adds to the log of updates that a planned start does not happen, once at a time. This needs no boot slots, so it
    /// does not wait for other requests: a caller could keep the record away by them.
    fn log_unscheduled(&mut self, ticket: UpdateTicket, version: String, reason: String) {
        if self.update.report_request.is_some() {
            let text = "another planned start is being logged; send this one when it was answered";
            let refusal = UpdateRefusal::new(RefusalCode::Busy, text);
            return self.answer(&ticket, refused(&refusal));
        }
        self.update.report_request = Some(ticket.clone());
        let system = self.update.system.clone();
        let by = ticket.by.clone();
        self.answer_by(ticket, move || {
            system.log_unscheduled(&version, &by, &reason);
            Ok((UpdateAnswer::Done, false))
        });
    }

    fn confirm_trial(&mut self, ticket: UpdateTicket) {
        self.update.request = Some(OpenRequest {
            ticket: ticket.clone(),
            has_vault: false,
        });
        let (system, anchor) = (self.update.system.clone(), self.anchor());
        let by = ticket.by.clone();
        self.answer_by(ticket, move || {
            system.confirm(&by, &anchor)?;
            Ok((UpdateAnswer::Done, false))
        });
    }

    /// Sends an answer to the node that asked.
    pub(super) fn answer(&self, ticket: &UpdateTicket, answer: UpdateAnswer) {
        // A node of another life would take the number for one of its own.
        if let Some(node) = self.node.as_ref().filter(|node| node.life() == ticket.life)
            && !node.send(NodeMessage::UpdateAnswer {
                n: ticket.n,
                answer,
            })
        {
            self.log
                .warn("the node does not read the answer to its request about updates");
        }
    }

    /// Answers a request by work on a thread, which says whether the machine has to restart.
    fn answer_by(
        &self,
        ticket: UpdateTicket,
        work: impl FnOnce() -> Result<(UpdateAnswer, bool), UpdateRefusal> + Send + 'static,
    ) {
        let failed = answered(ticket.clone(), Err(UpdateRefusal::failed()));
        self.blocking("a request about updates", failed, move || {
            answered(ticket, work())
        });
    }

    /// The frames of each bundle have to be read, also of one that is refused.
    fn queue_bundle(
        &mut self,
        ticket: UpdateTicket,
        order: StageOrder,
        busy: Option<UpdateRefusal>,
        now: u64,
    ) {
        if let Some(refusal) = &busy {
            self.answer(&ticket, refused(refusal));
        }
        if self.update.bundles.len() >= BUNDLES_MAX {
            self.log
                .warn("the node sends more bundles at once than it may: it is ended");
            return self.supervisor.lost(now);
        }
        self.update.bundles.push_back(QueuedBundle {
            ticket,
            order,
            is_refused: busy.is_some(),
        });
        self.read_bundle(now);
    }

    /// The node gives up the bundle of its request `n`, which a thread stages or which waits for its turn. The thread looks
    /// at this between the pieces of a program, and the node sends the end of the frames as well.
    pub(in crate::machine) fn give_up_bundle(&mut self, n: u64) {
        let life = self.life;
        let is_it = |ticket: &UpdateTicket| ticket.life == life && ticket.n == n;
        let staging = self.update.staging.as_ref();
        if let Some(staging) = staging.filter(|staging| is_it(&staging.ticket)) {
            staging.progress.give_up();
        }
        let mut waiting = self.update.bundles.iter_mut();
        let waiting = waiting.find(|bundle| is_it(&bundle.ticket) && !bundle.is_refused);
        let Some(waiting) = waiting else { return };
        waiting.is_refused = true;
        let ticket = waiting.ticket.clone();
        self.answer(&ticket, refused(&UpdateRefusal::given_up()));
    }

    /// The machine goes down: the bundle that a thread stages is given up, so that its boot slot is as before when the
    /// machine ends, and those that wait are not staged.
    pub(in crate::machine) fn give_up_bundles(&mut self) {
        if let Some(staging) = &self.update.staging {
            staging.progress.give_up();
        }
        let waiting = self.update.bundles.iter_mut();
        let waiting = waiting.filter(|bundle| !bundle.is_refused);
        let tickets: Vec<_> = waiting
            .map(|bundle| {
                bundle.is_refused = true;
                bundle.ticket.clone()
            })
            .collect();
        for ticket in tickets {
            self.answer(&ticket, refused(&going_down()));
        }
    }

    /// Reads the next bundle on a thread.
    pub(super) fn read_bundle(&mut self, now: u64) {
        if self.update.staging.is_some() {
            return;
        }
        let Some(bundle) = self.update.bundles.pop_front() else {
            return;
        };
        let QueuedBundle {
            ticket,
            order,
            is_refused,
        } = bundle;
        let stream = self.node.as_ref().filter(|node| node.life() == ticket.life);
        let stream = match stream.map(|node| node.bundles()) {
            Some(Ok(stream)) => stream,
            Some(Err(error)) => {
                self.log
                    .warn(format_args!("no stream of update bundles: {error}"));
                return self.supervisor.lost(now);
            }
            None => return,
        };
        let progress = Arc::new(StagingProgress::default());
        self.update.staging = Some(StagingBundle {
            ticket: ticket.clone(),
            announced: order.bytes,
            progress: Arc::clone(&progress),
            is_answered: is_refused,
            dry_run: order.dry_run,
        });
        self.update.progress_at = now;
        let frames = BundleFrameReader::new(stream, order.bytes, progress);
        let mut frames = frames.with_silence(BUNDLE_SILENT_MAX);
        let (system, anchor) = (self.update.system.clone(), self.anchor());
        let is_time_known = matches!(
            self.facts.clock,
            ClockState::Sntp | ClockState::Local(ClockSource::Rtc)
        );
        let events = self.events.clone();
        let for_early = ticket.clone();
        let early = move |outcome| {
            let event = UpdateEvent::Decided {
                ticket: for_early,
                outcome,
            };
            // The loop ends only with the machine.
            let _ = events.blocking_send(MachineEvent::Update(Box::new(event)));
        };
        let failed = MachineEvent::Update(Box::new(UpdateEvent::Staged {
            ticket: ticket.clone(),
            end: FramesEnd::Broken("a part of PID 1 failed".to_owned()),
        }));
        self.blocking("staging an update", failed, move || {
            let end = in_background(|| {
                let outcome = (!is_refused)
                    .then(|| system.stage_for(&mut frames, &order, &anchor, is_time_known));
                read_to_end(&mut frames, outcome, early)
            });
            MachineEvent::Update(Box::new(UpdateEvent::Staged { ticket, end }))
        });
    }

    /// Puts a version on trial: the staged one, or the one before.
    fn begin_trial(&mut self, ticket: UpdateTicket, of: TrialOf, limited: bool) {
        if self.opening || self.working {
            let text = "the vault is in use for something else; try again in a moment";
            return self.answer(
                &ticket,
                refused(&UpdateRefusal::new(RefusalCode::Busy, text)),
            );
        }
        // If two changes of the vault ran at once, one of them would be lost.
        self.working = true;
        self.update.request = Some(OpenRequest {
            ticket: ticket.clone(),
            has_vault: true,
        });
        let vault = match self.vault.opened_by() {
            Some((SlotType::Tpm2, true)) => PIN,
            Some((kind, _)) => kind.name(),
            None => self.facts.vault.state.as_str(),
        };
        let request = TrialRequest {
            by: ticket.by.clone(),
            vault: vault.to_owned(),
            needs_person: [PIN, PASSPHRASE].contains(&vault),
            data: self.facts.data.mode.clone(),
            config_taken: self.settings.is_taken_for_good(),
            rolls_back: of == TrialOf::Before,
            limited,
        };
        let system = self.update.system.clone();
        let place = self.trial_vault();
        self.answer_by(ticket, move || {
            let plan = match of {
                TrialOf::Before => match system.plan_rollback(&request.by)? {
                    RollbackPlan::TakenBack => return Ok((UpdateAnswer::Done, false)),
                    RollbackPlan::GiveUp(record) => {
                        system.give_up(&record, &request.by)?;
                        return Ok((UpdateAnswer::Done, true));
                    }
                    RollbackPlan::Trial(plan) => plan,
                },
                TrialOf::Staged(terms) => system.plan_apply(&terms)?,
            };
            if limited {
                system.check_rate(&request.by)?;
            }
            place.prepare(|| system.measured(&plan))?;
            system.begin_trial(&plan, &request)?;
            Ok((UpdateAnswer::Done, true))
        });
    }

    pub(super) fn request_ended(
        &mut self,
        ticket: &UpdateTicket,
        answer: UpdateAnswer,
        restarts: bool,
        now: u64,
    ) {
        let is_done = answer == UpdateAnswer::Done;
        self.update.log_request.take_if(|open| open == ticket);
        self.update.report_request.take_if(|open| open == ticket);
        self.answer(ticket, answer);
        let request = &mut self.update.request;
        let Some(request) = request.take_if(|open| open.ticket == *ticket) else {
            return;
        };
        self.update.owes_look = true;
        self.slot_changed(now);
        if request.has_vault {
            self.working = false;
            self.resume_command();
            self.tell_events();
            self.vault_changed();
        } else if is_done {
            // A confirmation that an administrator asked for.
            self.trial_is_over();
        }
        if restarts {
            // The note has its reason already, or needs no reason.
            self.update.note = None;
            let by = format!("{}, who asked for an update", ticket.by);
            self.go_down(PowerAction::Reboot, &by, now);
        }
    }

    /// PID 1 knows what it makes of a bundle, whose frames may still be coming.
    pub(super) fn bundle_decided(
        &mut self,
        ticket: &UpdateTicket,
        outcome: Result<UpdatePlan, UpdateRefusal>,
    ) {
        let answer = match outcome {
            Ok(plan) => UpdateAnswer::Planned {
                plan: UpdatePlan {
                    needs_person: self.vault.needs_person().map(str::to_owned),
                    ..plan
                },
            },
            Err(refusal) => refused(&refusal),
        };
        self.answer(ticket, answer);
        if let Some(staging) = &mut self.update.staging {
            staging.is_answered = true;
        }
    }

    pub(super) fn bundle_ended(&mut self, ticket: &UpdateTicket, end: FramesEnd, now: u64) {
        let staging = self.update.staging.take();
        self.facts.update.staging = None;
        self.facts.update.writing = None;
        if staging.as_ref().is_some_and(|one| !one.is_answered) {
            // The thread panicked.
            self.answer(ticket, refused(&UpdateRefusal::failed()));
        }
        let is_written = staging.is_some_and(|one| !one.dry_run);
        self.update.owes_look |= is_written;
        if is_written {
            self.slot_changed(now);
        }
        if let FramesEnd::Broken(why) = end
            && self.is_current(ticket.life)
            && self.shutdown.is_none()
        {
            self.log
                .warn(format_args!("the stream of update bundles broke: {why}"));
            self.supervisor.lost(now);
            return;
        }
        self.read_bundle(now);
    }
}

/// Tells the outcome of a bundle at once, and reads the bundle to its end, so that the next one begins with the stream.
/// The node sends no more once it knows the outcome.
pub(super) fn read_to_end<R: Read>(
    frames: &mut BundleFrameReader<R>,
    outcome: Option<Result<UpdatePlan, UpdateRefusal>>,
    early: impl FnOnce(Result<UpdatePlan, UpdateRefusal>),
) -> FramesEnd {
    if let Some(outcome) = outcome {
        early(outcome);
    }
    frames.drain()
}

/// The refusal of what a machine does not begin once it goes down.
fn going_down() -> UpdateRefusal {
    UpdateRefusal::new(
        RefusalCode::Busy,
        "the machine goes down; ask again when it is up",
    )
}

/// The refusal of a start for which no administrator asks, after which a person has to do this.
fn needs_person(what: &str) -> UpdateRefusal {
    let text = format!(
        "after the restart a person has to open the vault ({what}): an administrator starts this version"
    );
    UpdateRefusal::new(RefusalCode::NeedsPerson, text)
}

pub(super) fn refused(refusal: &UpdateRefusal) -> UpdateAnswer {
    UpdateAnswer::Refused {
        code: refusal.code.name().to_owned(),
        text: refusal.text.clone(),
    }
}

fn answered(
    ticket: UpdateTicket,
    outcome: Result<(UpdateAnswer, bool), UpdateRefusal>,
) -> MachineEvent {
    let (answer, restarts) = match outcome {
        Ok(done) => done,
        Err(refusal) => (refused(&refusal), false),
    };
    MachineEvent::Update(Box::new(UpdateEvent::Answered {
        ticket,
        answer,
        restarts,
    }))
}

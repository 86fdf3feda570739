//! The PID 1 of the tests: it reads bundles, answers requests, and writes the facts, as the real one does.

use std::io;

use alknet_init::control::UPDATE_FRAME_ABORT;
use alknet_update::ReleaseVersion;
use tokio::io::AsyncReadExt;

use super::*;

/// PID 1, as far as the node sees it.
pub(super) struct FakeInit {
    pub(super) init: UpdateClient,
    pub(super) stream: UnixStream,
    pub(super) seen: Arc<Mutex<InitSeen>>,
    pub(super) verdict: Arc<Mutex<Verdict>>,
    pub(super) facts: SharedFacts,
}

impl FakeInit {
    pub(super) async fn run(mut self, mut messages: mpsc::Receiver<InitMessage>) {
        while let Some(message) = messages.recv().await {
            let (n, request, by) = match message {
                InitMessage::Update { n, request, by } => (n, request, by),
                // The frames say the same a moment later.
                InitMessage::GiveUpBundle { .. } => continue,
                other => panic!("the node sends {other:?}"),
            };
            {
                let mut seen = self.seen.lock().expect("no panic");
                seen.is_staging = matches!(request, UpdateRequest::Stage { .. });
                seen.requests.push((request.clone(), by.clone()));
            }
            match request {
                UpdateRequest::Stage {
                    limited, dry_run, ..
                } => {
                    let stager = Some(UpdateStager { by, limited }).filter(|_| !dry_run);
                    if stager.is_some() {
                        change_facts(&self.facts, |facts| facts.update.outdated = true);
                    }
                    let verdict = self.verdict.lock().expect("no panic").clone();
                    if let Verdict::StallsUntilGivenUp = verdict {
                        given_up(&mut messages, n).await;
                    }
                    let read = self.read((n, stager), verdict, &mut messages).await;
                    read.expect("frames");
                }
                UpdateRequest::Log => {
                    self.init.answered(n, log_answer());
                }
                UpdateRequest::Unscheduled { .. } => self.init.answered(n, UpdateAnswer::Done),
                UpdateRequest::Confirm => {
                    let (code, text) = ("no-trial".to_owned(), "no version is on trial".to_owned());
                    self.init.answered(n, UpdateAnswer::Refused { code, text });
                }
                UpdateRequest::Rollback { .. } => {
                    let refused = self.seen.lock().expect("no panic").refuses_rollback;
                    let answer = refused.map_or(UpdateAnswer::Done, busy);
                    self.init.answered(n, answer);
                }
                UpdateRequest::Apply {
                    sha256,
                    agreed_floor,
                    ..
                } => {
                    let answer = self.start_answer(sha256, agreed_floor);
                    self.init.answered(n, answer);
                }
            }
        }
    }

    fn start_answer(&self, sha256: Option<String>, agreed: Option<AgreedFloor>) -> UpdateAnswer {
        let seen = self.seen.lock().expect("no panic");
        let floor = |floor: &str| floor.parse::<ReleaseVersion>().expect("a version");
        let raised = seen.raises.map(floor);
        let is_raised = agreed.is_some_and(|agreed| !agreed.permits(raised.as_ref()));
        let is_other = sha256.is_some_and(|it| seen.waits.is_some_and(|waits| waits != it));
        match seen.refuses_start {
            Some(code) => busy(code),
            None if is_other => UpdateAnswer::Refused {
                code: "other-staged".to_owned(),
                text: "another program waits".to_owned(),
            },
            None if is_raised => UpdateAnswer::Refused {
                code: "floor-raised".to_owned(),
                text: "the floor is a higher one".to_owned(),
            },
            None => UpdateAnswer::Done,
        }
    }

    fn see_frame(&self, length: u32) {
        let mut seen = self.seen.lock().expect("no panic");
        seen.frame_max = seen.frame_max.max(length);
    }

    /// The version of this plan is in the slot, whatever becomes of the answer. A caller that may not start versions takes
    /// no program over.
    fn write_slot(&self, plan: UpdatePlan, stager: Option<UpdateStager>) {
        let Some(stager) = stager else { return };
        let is_staged = self.facts.load().update.state == "staged";
        let mut seen = self.seen.lock().expect("no panic");
        let before = seen
            .slot
            .take()
            .filter(|it| is_staged && it.sha256 == plan.sha256);
        let before = before
            .map(|it| it.stager)
            .filter(|it| !it.limited && stager.limited);
        seen.slot = Some(StagedSlot {
            version: plan.to,
            sha256: plan.sha256,
            stager: before.unwrap_or(stager),
        });
    }

    /// Reads one bundle to its end, whatever it says of it meanwhile. `stager` is `None` for a dry run.
    async fn read(
        &mut self,
        (n, stager): (u64, Option<UpdateStager>),
        verdict: Verdict,
        messages: &mut mpsc::Receiver<InitMessage>,
    ) -> io::Result<()> {
        let (mut bundle, mut has_answered) = (Vec::new(), false);
        let is_whole = loop {
            let length = self.stream.read_u32().await?;
            match length {
                0 => break true,
                UPDATE_FRAME_ABORT => break false,
                _ => {}
            }
            let mut frame = vec![0; length as usize];
            self.stream.read_exact(&mut frame).await?;
            bundle.extend(frame);
            self.see_frame(length);
            let answer = match verdict {
                Verdict::RefusesAfter(bytes) if bundle.len() as u64 >= bytes => Some(refusal()),
                Verdict::PlansAfter(bytes) if bundle.len() as u64 >= bytes => {
                    Some(UpdateAnswer::Planned { plan: plan() })
                }
                _ => None,
            };
            if let Some(answer) = answer.filter(|_| !has_answered) {
                has_answered = true;
                self.init.answered(n, answer);
            }
        };
        let read_bytes = bundle.len() as u64;
        let refused = match verdict {
            Verdict::Refuses(begin, code) if bundle.starts_with(begin) => Some(code),
            _ => None,
        };
        {
            let mut seen = self.seen.lock().expect("no panic");
            seen.is_staging = false;
            seen.bundles.push((bundle, is_whole));
        }
        if let Verdict::AppliesUntilGivenUp | Verdict::StagedBeforeGivenUp | Verdict::Silent(_) =
            verdict
        {
            given_up(messages, n).await;
        }
        let is_staged = match verdict {
            Verdict::AppliesUntilGivenUp => false,
            Verdict::StagesAfter(bytes, _) => is_whole || read_bytes >= bytes,
            _ => is_whole,
        };
        if is_staged && refused.is_none() && !has_answered {
            self.write_slot(verdict.plan(), stager.clone());
        }
        if stager.is_some() {
            look_at_slots(&self.seen, &self.facts);
        }
        if let Verdict::Silent(_) = verdict {
            return Ok(());
        }
        if !has_answered {
            let answer = match (is_staged, refused) {
                (true, Some(code)) => UpdateAnswer::Refused {
                    code: code.to_owned(),
                    text: "this bundle is of no use here".to_owned(),
                },
                (true, None) => UpdateAnswer::Planned {
                    plan: verdict.plan(),
                },
                (false, _) => UpdateAnswer::Refused {
                    code: "given-up".to_owned(),
                    text: "the node gave it up".to_owned(),
                },
            };
            self.init.answered(n, answer);
        }
        Ok(())
    }
}

/// Waits until the node gives up the bundle of its request `n`.
async fn given_up(messages: &mut mpsc::Receiver<InitMessage>, n: u64) {
    let message = messages.recv().await;
    assert_eq!(message, Some(InitMessage::GiveUpBundle { n }));
}

/// A refusal with this code by a PID 1 that has other work.
pub(super) fn busy(code: &str) -> UpdateAnswer {
    UpdateAnswer::Refused {
        code: code.to_owned(),
        text: "another request is under way".to_owned(),
    }
}

fn refusal() -> UpdateAnswer {
    UpdateAnswer::Refused {
        code: "signature".to_owned(),
        text: "too few keys have signed".to_owned(),
    }
}

//! A bundle on its way to PID 1, which a caller can give up at every step.

use std::ops::ControlFlow;
use std::pin::pin;
use std::time::Duration;

use alknet_init::control::UpdateAnswer;
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};

use super::init_client::{BundleFrames, UpdateClient, UpdateClientError, wait};
use super::session::{StagingOutcome, StagingSession};

/// A bundle on its way to PID 1.
///
/// PID 1 may read no frame for minutes while it writes a program, so the session can be given up at every step: PID 1
/// learns of it beside the stream. A frame that has begun is still sent to its end, because another bundle follows it.
pub(super) struct BundleSending<'a> {
    pub(super) init: &'a UpdateClient,
    pub(super) session: &'a StagingSession,
    /// The number of the request.
    pub(super) n: u64,
    pub(super) frames: BundleFrames,
    pub(super) answer: oneshot::Receiver<UpdateAnswer>,
    /// As in [`StagingPace::abort`](super::pace::StagingPace::abort).
    pub(super) abort: Duration,
}

impl BundleSending<'_> {
    /// Sends a piece. Breaks if the session was given up meanwhile.
    pub(super) async fn data(&mut self, data: &[u8]) -> Result<ControlFlow<()>, UpdateClientError> {
        let mut sent = pin!(self.frames.data(data));
        tokio::select! {
            biased;
            sent = &mut sent => return sent.map(ControlFlow::Continue),
            () = self.session.given_up.notified() => {}
        }
        self.init.give_up(self.n).await?;
        sent.await.map(ControlFlow::Break)
    }

    /// Ends a bundle before its end. Returns the same as [`finish`](Self::finish).
    pub(super) async fn give_up(
        self,
        why: String,
    ) -> Result<(StagingOutcome, bool), UpdateClientError> {
        self.init.give_up(self.n).await?;
        self.abort(why).await
    }

    /// Ends the frames of a bundle that PID 1 gives up. PID 1 is free again once it has answered.
    pub(super) async fn abort(
        mut self,
        why: String,
    ) -> Result<(StagingOutcome, bool), UpdateClientError> {
        self.frames.abort().await?;
        Ok(match wait(self.answer, self.abort).await {
            // PID 1 needs neither the end of a bundle nor its last frame.
            Ok(answer @ UpdateAnswer::Planned { .. }) => (outcome_of(answer), true),
            answer => (StagingOutcome::GivenUp(why), answer.is_ok()),
        })
    }

    /// Ends a complete bundle, and waits for what PID 1 makes of it. Returns also whether this is known: a bundle that is
    /// given up while PID 1 does not answer may be staged later.
    pub(super) async fn finish(
        self,
        longest: Duration,
    ) -> Result<(StagingOutcome, bool), UpdateClientError> {
        let Self {
            init,
            session,
            n,
            mut frames,
            answer,
            abort,
        } = self;
        let mut decided = pin!(async {
            frames.end().await?;
            answer.await.map_err(|_| UpdateClientError::Broken)
        });
        let ended = tokio::select! {
            biased;
            answer = &mut decided => return answer.map(|answer| (outcome_of(answer), true)),
            () = session.given_up.notified() => StagingOutcome::GivenUp(session.why()),
            // PID 1 must not go on with a session that no caller can cancel.
            () = sleep(longest) => {
                let seconds = longest.as_secs();
                StagingOutcome::Unanswered(format!("PID 1 did not stage it within {seconds} s"))
            }
        };
        init.give_up(n).await?;
        Ok(match timeout(abort, decided).await {
            // It was staged already.
            Ok(Ok(answer @ UpdateAnswer::Planned { .. })) => (outcome_of(answer), true),
            decided => (ended, matches!(decided, Ok(Ok(_)))),
        })
    }
}

/// What a session ended with, by the answer of PID 1.
pub(super) fn outcome_of(answer: UpdateAnswer) -> StagingOutcome {
    match answer {
        UpdateAnswer::Planned { plan } => StagingOutcome::Planned(plan),
        UpdateAnswer::Refused { code, text } => StagingOutcome::Refused { code, text },
        UpdateAnswer::Done | UpdateAnswer::Log { .. } => {
            StagingOutcome::GivenUp("PID 1 gave an answer of another kind".to_owned())
        }
    }
}

//! The one bundle that is sent to PID 1 at a time, piece by piece.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use alknet_init::control::{UpdatePlan, UpdateRequest};
use bytes::Bytes;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::{Instant, sleep, sleep_until};

use super::bundle_sending::{BundleSending, outcome_of};
use super::init_client::{UpdateClient, UpdateClientError};
use super::pace::StagingPace;
use super::piece_pacing::{PIECE_BYTES_MAX, PiecePacing, RequestCount};

/// Longest bundle, in bytes. PID 1 has its own limits of what is in one.
pub(super) const BUNDLE_BYTES_MAX: u64 = 1 << 30;
/// How long a session waits for its next piece.
pub(super) const SESSION_IDLE: Duration = Duration::from_secs(600);
/// Longest time of a session, until its last piece: a bundle of today at the least rate.
pub(crate) const SESSION_TIME_MAX: Duration = Duration::from_secs(3 * 3600);
/// Fewest bytes a second of a bundle, on average since its session began.
pub(super) const SESSION_RATE_BYTES_S_MIN: u64 = 4 << 10;
/// How far behind that a bundle may be: the connection broke, or its sender restarted.
pub(super) const SESSION_RATE_GRACE: Duration = Duration::from_secs(600);
/// Pieces in a row that do not fit, after which a session is given up. A sender that lost an answer sends one.
pub(super) const WRONG_PIECES_MAX: u32 = 64;
/// How long PID 1 may take to notice that a bundle was given up.
pub(super) const ABORT_TIMEOUT: Duration = Duration::from_secs(30);

/// What a session is for.
#[derive(Clone, Debug)]
pub(super) struct StagingRequest {
    /// Who may send its pieces.
    pub(super) owner: String,
    /// Who asked, for the log.
    pub(super) by: String,
    /// Where the bytes come from, for people: `upload`, an address, the name of a hub.
    pub(super) source: String,
    pub(super) bytes: u64,
    pub(super) downgrade: Option<String>,
    pub(super) dry_run: bool,
    /// No administrator asks for this version, but the machine itself or a hub.
    pub(super) unasked: bool,
    /// It comes from another channel than that of the configuration, or from a caller that may not start versions.
    pub(super) other_source: bool,
    /// The caller may not start versions.
    pub(super) limited: bool,
    /// A caller sends the pieces. Otherwise the node fetches them itself.
    pub(super) by_calls: bool,
}

/// How the sending of a bundle ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum StagingOutcome {
    /// PID 1 staged it, or on a dry run would have.
    Planned(UpdatePlan),
    /// PID 1 refused it.
    Refused { code: String, text: String },
    /// It was not sent to its end.
    GivenUp(String),
    /// PID 1 did not say in time what it made of it, or its answer was missed. This is no judgement about the bundle.
    Unanswered(String),
}

/// Why a session does not begin, or a piece is not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum StagingError {
    /// Another bundle is under way.
    Busy,
    /// The session ended.
    Ended(Box<StagingOutcome>),
    /// PID 1 cannot be asked.
    Init(UpdateClientError),
    /// There is no session of this name, or it belongs to another caller.
    NoSession,
    /// The piece does not begin where the last one ended.
    Offset(u64),
    /// A bundle of this length is not taken.
    Size(u64),
    /// The piece has more bytes than are missing.
    TooMuch(u64),
}

/// The right to begin the next session, while other callers ask for one. Dropping it gives the right back.
pub(super) struct SessionTurn(StagingSessions);

impl Drop for SessionTurn {
    fn drop(&mut self) {
        self.0.lock().has_turn = false;
    }
}

impl fmt::Display for StagingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Busy => f.write_str("another update is being sent: wait for its end"),
            Self::Ended(outcome) => match &**outcome {
                StagingOutcome::Planned(plan) => {
                    write!(f, "the session ended: {} is complete", plan.to)
                }
                StagingOutcome::Refused { text, .. } => f.write_str(text),
                StagingOutcome::GivenUp(why) | StagingOutcome::Unanswered(why) => {
                    write!(f, "the session ended: {why}")
                }
            },
            Self::Init(error) => error.fmt(f),
            Self::NoSession => f.write_str("there is no such session: begin with update/stage"),
            Self::Offset(offset) => write!(f, "the next piece begins at {offset}"),
            Self::Size(bytes) => write!(
                f,
                "a bundle of {bytes} bytes is not taken: it has 1 to {BUNDLE_BYTES_MAX}"
            ),
            Self::TooMuch(left) => write!(f, "the piece is too long: {left} bytes are missing"),
        }
    }
}

impl From<UpdateClientError> for StagingError {
    fn from(error: UpdateClientError) -> Self {
        Self::Init(error)
    }
}

/// What a piece led to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PieceTaken {
    /// Where the next piece begins.
    pub(super) offset: u64,
    /// How many bytes it should have at most, if one follows.
    pub(super) next_bytes: usize,
    /// After the last piece, what PID 1 made of the bundle.
    pub(super) plan: Option<UpdatePlan>,
}

/// A piece on its way to PID 1.
struct BundlePiece {
    offset: u64,
    data: Bytes,
    taken: oneshot::Sender<Result<PieceTaken, StagingError>>,
}

/// A session, as others see it.
#[derive(Debug)]
pub(super) struct StagingSession {
    pub(super) id: String,
    pub(super) request: StagingRequest,
    offset: AtomicU64,
    pieces: mpsc::Sender<BundlePiece>,
    /// Its sender gives it up.
    pub(super) given_up: Notify,
    /// The reason that it gives.
    reason: OnceLock<String>,
}

impl StagingSession {
    /// How many bytes PID 1 has.
    pub(super) fn offset(&self) -> u64 {
        self.offset.load(Ordering::Relaxed)
    }

    /// Why it was given up.
    pub(super) fn why(&self) -> String {
        self.reason.get().cloned().unwrap_or_default()
    }

    /// The first reason counts.
    fn give_up(&self, why: String) {
        self.reason.set(why).ok();
        self.given_up.notify_one();
    }
}

/// A session that ended.
#[derive(Clone, Debug)]
pub(super) struct EndedStaging {
    pub(super) id: String,
    pub(super) request: StagingRequest,
    pub(super) outcome: StagingOutcome,
}

/// A session of which a caller has the name.
enum FoundSession {
    Running(Arc<StagingSession>),
    Ended(Box<EndedStaging>),
}

#[derive(Default)]
struct SessionTable {
    last: u64,
    /// From the start of a session until its end.
    current: Option<Arc<StagingSession>>,
    ended: Option<EndedStaging>,
    /// What is staged and by which request, as far as this process knows.
    staged: Option<(UpdatePlan, StagingRequest)>,
    /// Whether there is a [`SessionTurn`].
    has_turn: bool,
    /// Gets the turn at the end of the session under way.
    claim: Option<oneshot::Sender<SessionTurn>>,
}

impl SessionTable {
    /// A caller that may not start versions does not take the program of another one over by sending it again. The plan
    /// gets the floor that PID 1 has noted since: a caller that agrees to a start has to see it.
    fn note_staged(&mut self, plan: &UpdatePlan, request: &StagingRequest) {
        match &mut self.staged {
            Some((known, by)) if request.limited && !by.limited && known.sha256 == plan.sha256 => {
                known.floor.clone_from(&plan.floor);
            }
            staged => *staged = Some((plan.clone(), request.clone())),
        }
    }
}

/// The session under way and the last one. Clones share them.
#[derive(Clone)]
pub(super) struct StagingSessions {
    init: UpdateClient,
    pub(super) pace: StagingPace,
    request_count: RequestCount,
    table: Arc<Mutex<SessionTable>>,
}

impl StagingSessions {
    pub(super) fn new(init: UpdateClient, pace: StagingPace, request_count: RequestCount) -> Self {
        Self {
            init,
            pace,
            request_count,
            table: Arc::default(),
        }
    }

    /// Begins a session. Must run inside a runtime.
    pub(super) fn begin(
        &self,
        request: StagingRequest,
        turn: Option<SessionTurn>,
    ) -> Result<Arc<StagingSession>, StagingError> {
        self.begin_if(request, |table| turn.is_some() || !table.has_turn)
    }

    /// Begins a session if the one with this number is still the last: another one may have staged a version since.
    pub(super) fn begin_after(
        &self,
        last: u64,
        request: StagingRequest,
    ) -> Result<Arc<StagingSession>, StagingError> {
        self.begin_if(request, |table| table.last == last && !table.has_turn)
    }

    fn begin_if(
        &self,
        request: StagingRequest,
        is_permitted: impl FnOnce(&SessionTable) -> bool,
    ) -> Result<Arc<StagingSession>, StagingError> {
        self.init.check()?;
        if !(1..=BUNDLE_BYTES_MAX).contains(&request.bytes) {
            return Err(StagingError::Size(request.bytes));
        }
        // One piece is written and one waits: with the one that a call holds, less than a megabyte.
        let (pieces, arriving) = mpsc::channel(1);
        let mut table = self.lock();
        if table.current.is_some() || !is_permitted(&table) {
            return Err(StagingError::Busy);
        }
        table.last += 1;
        let session = Arc::new(StagingSession {
            id: format!("s{}", table.last),
            request,
            offset: AtomicU64::new(0),
            pieces,
            given_up: Notify::new(),
            reason: OnceLock::new(),
        });
        table.current = Some(Arc::clone(&session));
        drop(table);
        // A task of its own: if a call ends, the frame that it sends does not stay half written.
        tokio::spawn(self.clone().carry(Arc::clone(&session), arriving));
        Ok(session)
    }

    /// Gives up the session under way, also that of another caller, and waits for its end. Returns whether it did: there
    /// may be none, or PID 1 may have staged its version at this moment.
    pub(super) async fn cancel(&self, why: String) -> bool {
        let Some(session) = self.current() else {
            return false;
        };
        session.give_up(why);
        !matches!(self.outcome(session).await, StagingOutcome::Planned(_))
    }

    /// Like `cancel`, and lets no other caller begin the next session.
    pub(super) async fn take_over(&self, why: String) -> Result<SessionTurn, StagingError> {
        self.init.check()?;
        let turn = self.turn()?;
        self.cancel(why).await;
        Ok(turn)
    }

    /// Lets no other caller begin the next session.
    pub(super) fn turn(&self) -> Result<SessionTurn, StagingError> {
        let mut table = self.lock();
        if table.has_turn {
            return Err(StagingError::Busy);
        }
        table.has_turn = true;
        Ok(SessionTurn(self.clone()))
    }

    /// Lets no other caller begin a session at the end of this one: the receiver gets the turn then. It gets none if the
    /// session has ended, or if a caller takes it over before its end.
    pub(super) fn claim_turn(&self, session: &StagingSession) -> oneshot::Receiver<SessionTurn> {
        let (claim, turn) = oneshot::channel();
        let mut table = self.lock();
        let current = table.current.as_ref();
        if current.is_some_and(|current| current.id == session.id) {
            table.claim = Some(claim);
        }
        turn
    }

    /// Sends a piece, and after the last one waits for PID 1.
    pub(super) async fn write(
        &self,
        (id, owner): (&str, &str),
        (offset, data): (u64, Bytes),
    ) -> Result<PieceTaken, StagingError> {
        let session = match self.lookup(id, owner)? {
            FoundSession::Running(session) => session,
            FoundSession::Ended(ended) => return ended_write(&ended, offset),
        };
        let (taken, answer) = oneshot::channel();
        let piece = BundlePiece {
            offset,
            data,
            taken,
        };
        let sent = session.pieces.send(piece).await.is_ok();
        drop(session);
        match answer.await {
            Ok(answer) if sent => answer,
            // The session ended before it took the piece.
            _ => match self.lookup(id, owner)? {
                FoundSession::Ended(ended) => ended_write(&ended, offset),
                FoundSession::Running(_) => Err(StagingError::Init(UpdateClientError::Broken)),
            },
        }
    }

    /// Gives a session up with a reason, and waits until PID 1 takes the next one.
    pub(super) async fn give_up(
        &self,
        (id, owner): (&str, &str),
        why: String,
    ) -> Result<StagingOutcome, StagingError> {
        match self.lookup(id, owner)? {
            FoundSession::Running(session) => {
                session.give_up(why);
                Ok(self.outcome(session).await)
            }
            FoundSession::Ended(ended) => Ok(ended.outcome),
        }
    }

    /// The session of this name and owner: one that runs, or the last one.
    fn lookup(&self, id: &str, owner: &str) -> Result<FoundSession, StagingError> {
        let table = self.lock();
        let current = table.current.as_ref();
        // The names count up from `s1`, so any caller can guess one: the owner is compared as well.
        if let Some(session) = current.filter(|it| it.id == id && it.request.owner == owner) {
            return Ok(FoundSession::Running(Arc::clone(session)));
        }
        let ended = table.ended.as_ref();
        let ended = ended.filter(|it| it.id == id && it.request.owner == owner);
        let ended = ended.cloned().map(Box::new);
        ended
            .map(FoundSession::Ended)
            .ok_or(StagingError::NoSession)
    }

    /// The session under way.
    pub(super) fn current(&self) -> Option<Arc<StagingSession>> {
        self.lock().current.clone()
    }

    /// The number of the last session. Refuses while that session is under way.
    pub(super) fn require_idle(&self) -> Result<u64, StagingError> {
        let table = self.lock();
        match table.current.is_some() {
            true => Err(StagingError::Busy),
            false => Ok(table.last),
        }
    }

    /// How the last session ended.
    pub(super) fn ended(&self) -> Option<EndedStaging> {
        self.lock().ended.clone()
    }

    /// What this process knows of the staged version.
    pub(super) fn staged(&self) -> Option<UpdatePlan> {
        self.lock().staged.clone().map(|(plan, _)| plan)
    }

    /// The request by which the staged version came.
    pub(super) fn staged_by(&self) -> Option<StagingRequest> {
        self.lock().staged.clone().map(|(_, request)| request)
    }

    /// The staged version was taken back, or another one may have taken its place.
    pub(super) fn forget_staged(&self) {
        self.lock().staged = None;
    }

    /// Waits for the end of a session.
    pub(super) async fn outcome(&self, session: Arc<StagingSession>) -> StagingOutcome {
        let id = session.id.clone();
        let pieces = session.pieces.clone();
        drop(session);
        // The receiver lives as long as the session's task.
        pieces.closed().await;
        let ended = self.ended().filter(|ended| ended.id == id);
        let gone = || StagingOutcome::Unanswered("another session began".to_owned());
        ended.map_or_else(gone, |ended| ended.outcome)
    }

    /// Carries the pieces of one session to PID 1.
    async fn carry(self, session: Arc<StagingSession>, mut pieces: mpsc::Receiver<BundlePiece>) {
        let mut last = None;
        let carried = self.carry_pieces(&session, &mut pieces, &mut last).await;
        let (outcome, is_known) =
            carried.unwrap_or_else(|error| (StagingOutcome::Unanswered(error.to_string()), false));
        let ended = EndedStaging {
            id: session.id.clone(),
            request: session.request.clone(),
            outcome: outcome.clone(),
        };
        let claim = {
            let mut table = self.lock();
            match &outcome {
                _ if ended.request.dry_run => {}
                StagingOutcome::Planned(plan) => table.note_staged(plan, &ended.request),
                _ if is_known => {}
                // PID 1 may stage it all the same. From now on its facts alone say what waits, as after a restart of the
                // node. They are outdated since it has the bundle, until it has read the slots after the bundle's end.
                _ => table.staged = None,
            }
            table.ended = Some(ended);
            table.current = None;
            // In the same moment: another caller may be trying to begin a session all the time.
            let claim = table.claim.take();
            let claim = claim.filter(|_| !table.has_turn);
            table.has_turn |= claim.is_some();
            claim
        };
        if let Some(claim) = claim {
            // A turn that is not received is dropped here, which gives it back.
            claim.send(SessionTurn(self.clone())).ok();
        }
        // Only now: who waits for the end finds it.
        drop(pieces);
        if let Some(BundlePiece { taken, .. }) = last {
            let answer = match outcome {
                StagingOutcome::Planned(plan) => Ok(PieceTaken {
                    offset: session.offset(),
                    next_bytes: PIECE_BYTES_MAX,
                    plan: Some(plan),
                }),
                outcome => Err(StagingError::Ended(Box::new(outcome))),
            };
            taken.send(answer).ok();
        }
    }

    /// Asks PID 1 to take the bundle of a session.
    async fn begin_bundle<'a>(
        &'a self,
        session: &'a StagingSession,
    ) -> Result<BundleSending<'a>, UpdateClientError> {
        let frames = self.init.frames().await?;
        let asked = &session.request;
        let request = UpdateRequest::Stage {
            bytes: asked.bytes,
            downgrade: asked.downgrade.clone(),
            dry_run: asked.dry_run,
            unasked: asked.unasked,
            other_source: asked.other_source,
            limited: asked.limited,
        };
        let (n, answer) = self.init.begin(request, &asked.by).await?;
        Ok(BundleSending {
            init: &self.init,
            session,
            n,
            frames,
            answer,
            abort: self.pace.abort,
        })
    }

    /// Returns also whether it is known what PID 1 made of the bundle. `last` gets the piece that waits for its answer.
    async fn carry_pieces(
        &self,
        session: &StagingSession,
        pieces: &mut mpsc::Receiver<BundlePiece>,
        last: &mut Option<BundlePiece>,
    ) -> Result<(StagingOutcome, bool), UpdateClientError> {
        let mut sending = self.begin_bundle(session).await?;
        let bytes = session.request.bytes;
        let began = Instant::now();
        let (mut sent, mut last_piece, mut wrong) = (0, began, 0);
        let mut pacing = PiecePacing::begin(&self.request_count, session.request.by_calls);
        while sent < bytes {
            // Counted from the last piece that fitted: other ones do not keep a session alive.
            let (due, why) = self.pace.due((began, last_piece), sent);
            let piece = tokio::select! {
                biased;
                // PID 1 may refuse a bundle by its first bytes, and plan a dry run by its metadata.
                early = &mut sending.answer => {
                    sending.frames.abort().await?;
                    let outcome = early.map(outcome_of).map_err(|_| UpdateClientError::Broken);
                    return outcome.map(|outcome| (outcome, true));
                }
                () = session.given_up.notified() => return sending.give_up(session.why()).await,
                () = sleep_until(due) => None,
                piece = pieces.recv() => piece,
            };
            let Some(mut piece) = piece else {
                return sending.give_up(why).await;
            };
            let left = bytes - sent;
            if let Err(error) = fits(&piece, sent, left) {
                piece.taken.send(Err(error)).ok();
                wrong += 1;
                if wrong == WRONG_PIECES_MAX {
                    let why = format!("{wrong} pieces in a row did not fit");
                    return sending.give_up(why).await;
                }
                continue;
            }
            (last_piece, wrong) = (Instant::now(), 0);
            let data = std::mem::take(&mut piece.data);
            if sending.data(&data).await?.is_break() {
                // Its answer is how the session ended.
                *last = Some(piece);
                return sending.abort(session.why()).await;
            }
            sent += data.len() as u64;
            session.offset.store(sent, Ordering::Relaxed);
            if sent == bytes {
                *last = Some(piece);
                continue;
            }
            let after = pacing.note_piece(data.len());
            tokio::select! {
                biased;
                () = session.given_up.notified() => {
                    *last = Some(piece);
                    return sending.give_up(session.why()).await;
                }
                () = sleep(after.pause) => {}
            }
            let taken = PieceTaken {
                offset: sent,
                next_bytes: after.next_bytes,
                plan: None,
            };
            pacing.go_on();
            last_piece = Instant::now();
            piece.taken.send(Ok(taken)).ok();
        }
        sending.finish(self.pace.answer).await
    }

    fn lock(&self) -> MutexGuard<'_, SessionTable> {
        // The table is whole after any panic.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn fits(piece: &BundlePiece, sent: u64, left: u64) -> Result<(), StagingError> {
    if piece.offset != sent {
        return Err(StagingError::Offset(sent));
    }
    match piece.data.len() as u64 > left {
        true => Err(StagingError::TooMuch(left)),
        false => Ok(()),
    }
}

/// The answer to a piece for a session that has ended: a caller that lost the answer to its last piece sends it again.
fn ended_write(ended: &EndedStaging, offset: u64) -> Result<PieceTaken, StagingError> {
    match &ended.outcome {
        StagingOutcome::Planned(plan) if offset <= ended.request.bytes => Ok(PieceTaken {
            offset: ended.request.bytes,
            next_bytes: PIECE_BYTES_MAX,
            plan: Some(plan.clone()),
        }),
        outcome => Err(StagingError::Ended(Box::new(outcome.clone()))),
    }
}

//! Bundles that a caller sends piece by piece.

use std::sync::atomic::{AtomicU64, Ordering};

use alknet_call::CallError;
use alknet_init::control::UPDATE_FRAME_BYTES_MAX;
use nix::time::{ClockId, clock_gettime};

use super::*;
use crate::node::update::init_client::UpdateClientError;
use crate::node::update::piece_pacing::{PIECE_BYTES_LEAST, PIECE_BYTES_MAX};
use crate::node::update::session::{PieceTaken, StagingOutcome, StagingSessions};

#[tokio::test]
async fn a_bundle_goes_to_pid_1_in_frames_and_its_plan_comes_back() {
    let bench = NodeUpdateBench::new();
    let bundle: Vec<u8> = (0..600_000_u32).map(|n| n as u8).collect();
    let id = bench.begin(bundle.len());
    let mut offset = 0;
    for piece in bundle.chunks(PIECE_BYTES_MAX) {
        let taken = bench.send(&id, offset, piece).await.expect("taken");
        offset += piece.len();
        assert_eq!(taken.offset, offset as u64);
        assert_eq!(taken.plan.is_some(), offset == bundle.len());
    }
    assert_eq!(bench.bundles(), [(bundle, true)]);
    assert_eq!(
        bench.seen.lock().expect("no panic").frame_max,
        UPDATE_FRAME_BYTES_MAX
    );
    assert_eq!(bench.updates.0.sessions.staged(), Some(plan()));
    assert!(bench.updates.0.sessions.current().is_none());
}

/// A session whose node counts so many requests of others with each piece, and works so long for them.
struct PacedSession {
    sessions: StagingSessions,
    id: String,
    /// PID 1's end of the channels.
    _init: (StdStream, mpsc::Receiver<InitMessage>),
}

impl PacedSession {
    async fn begin(bytes: usize, others: u64, work: Duration) -> Self {
        let (to_init, mut messages) = mpsc::channel(8);
        let (ours, theirs) = StdStream::pair().expect("sockets");
        let init = UpdateClient::new(Some(to_init), Some(UpdateStream::of_test(ours)));
        let asked = AtomicU64::new(0);
        let used = || Duration::from(clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).expect("it"));
        let count = RequestCount::new(move || {
            let until = used() + work;
            while used() < until {}
            asked.fetch_add(others, Ordering::Relaxed)
        });
        let pace = StagingPace {
            abort: Duration::from_millis(20),
            ..StagingPace::default()
        };
        let sessions = StagingSessions::new(init, pace, count);
        let session = sessions.begin(request(bytes), None).expect("it begins");
        assert!(messages.recv().await.is_some());
        let id = session.id.clone();
        Self {
            sessions,
            id,
            _init: (theirs, messages),
        }
    }

    async fn send(&self, offset: u64, bytes: usize) -> Result<PieceTaken, StagingError> {
        let piece = (offset, Bytes::from(vec![7; bytes]));
        self.sessions.write((&self.id, "ada"), piece).await
    }
}

/// Beside the requests of other callers the node asks for pieces that they need not wait for.
#[tokio::test]
async fn the_node_says_how_long_the_next_piece_should_be() {
    for (others, expected) in [(0, PIECE_BYTES_MAX), (5, PIECE_BYTES_LEAST)] {
        let session = PacedSession::begin(9, others, Duration::ZERO).await;
        let first = session.send(0, 4).await.expect("it is taken");
        assert_eq!((first.offset, first.next_bytes), (4, PIECE_BYTES_MAX));
        let second = session.send(4, 4).await.expect("it is taken");
        assert_eq!((second.offset, second.next_bytes), (8, expected));
    }
}

/// A bundle is given up while the node waits before it asks for the next piece: the sender of the last one gets the
/// reason.
#[tokio::test]
async fn a_piece_has_its_answer_when_the_bundle_is_given_up_in_the_pause() {
    let piece = PIECE_BYTES_LEAST;
    let session = PacedSession::begin(3 * piece, 5, Duration::from_millis(60)).await;
    session.send(0, piece).await.expect("it is taken");
    let (sent, given_up) = tokio::join!(session.send(piece as u64, piece), async {
        // The node works for the piece meanwhile, and then rests for as long as it may.
        tokio::time::sleep(Duration::from_millis(20)).await;
        let of = (session.id.as_str(), "ada");
        session.sessions.give_up(of, "enough".to_owned()).await
    });
    let ended = StagingOutcome::GivenUp("enough".to_owned());
    assert_eq!(given_up, Ok(ended.clone()));
    assert_eq!(sent, Err(StagingError::Ended(Box::new(ended))));
}

/// A caller that lost its connection asks for the offset and goes on, wherever that was.
#[tokio::test]
async fn an_upload_goes_on_at_each_offset() {
    let bundle = b"a bundle!";
    for cut in 0..=bundle.len() {
        let bench = NodeUpdateBench::new();
        let id = bench.begin(bundle.len());
        if cut > 0 {
            bench.send(&id, 0, &bundle[..cut]).await.expect("taken");
        }
        // The answer to the last piece was lost: sent again, it has the same answer.
        let wrong = bench.send(&id, cut + 1, b"x").await;
        match cut < bundle.len() {
            true => assert_eq!(wrong, Err(StagingError::Offset(cut as u64)), "{cut}"),
            false => assert!(matches!(wrong, Err(StagingError::Ended(_))), "{wrong:?}"),
        }
        let rest = bench.send(&id, cut, &bundle[cut..]).await.expect("taken");
        assert_eq!((rest.offset, rest.plan), (9, Some(plan())), "{cut}");
        assert_eq!(bench.bundles(), [(bundle.to_vec(), true)], "{cut}");
    }
}

#[tokio::test]
async fn a_piece_that_is_too_long_or_of_another_caller_is_not_taken() {
    let bench = NodeUpdateBench::new();
    let id = bench.begin(4);
    let long = bench.send(&id, 0, b"12345").await;
    assert_eq!(long, Err(StagingError::TooMuch(4)));
    let piece = (0, Bytes::from_static(b"1"));
    let sessions = &bench.updates.0.sessions;
    let other = sessions.write((id.as_str(), "bob"), piece).await;
    assert_eq!(other, Err(StagingError::NoSession));
    assert_eq!(
        bench.send("s9", 0, b"1").await,
        Err(StagingError::NoSession)
    );
    bench.send(&id, 0, b"1234").await.expect("taken");
    assert_eq!(bench.bundles(), [(b"1234".to_vec(), true)]);
}

#[tokio::test]
async fn one_bundle_is_sent_at_a_time() {
    let bench = NodeUpdateBench::new();
    let id = bench.begin(4);
    let second = bench.updates.0.sessions.begin(request(4), None).err();
    assert_eq!(second, Some(StagingError::Busy));
    bench.send(&id, 0, b"1234").await.expect("taken");
    let again = bench.begin(3);
    bench.send(&again, 0, b"abc").await.expect("taken");
    assert_eq!(bench.bundles().len(), 2);
    for bytes in [0, (session::BUNDLE_BYTES_MAX + 1) as usize] {
        let refused = bench.updates.0.sessions.begin(request(bytes), None).err();
        assert_eq!(refused, Some(StagingError::Size(bytes as u64)));
    }
}

/// A caller that asks for a session all the time gets none between the machine's own and what the machine does next.
#[tokio::test]
async fn the_turn_after_a_session_is_of_the_one_who_claimed_it() {
    let bench = NodeUpdateBench::new();
    let sessions = &bench.updates.0.sessions;
    let begin = || sessions.begin(request(3), None).map(|it| it.id.clone());
    let claimed = |id: &str| {
        let session = sessions.current().expect("a session");
        assert_eq!(session.id, id);
        sessions.claim_turn(&session)
    };
    let id = begin().expect("it begins");
    let claim = claimed(&id);
    bench.send(&id, 0, b"abc").await.expect("taken");
    assert_eq!(begin(), Err(StagingError::Busy));
    let turn = claim.await.expect("a turn");
    assert_eq!(begin(), Err(StagingError::Busy));
    drop(turn);
    // One that is not received is given back.
    let id = begin().expect("it begins");
    drop(claimed(&id));
    bench.send(&id, 0, b"abc").await.expect("taken");
    // A caller that takes the session over has its turn.
    let id = begin().expect("it begins");
    let claim = claimed(&id);
    let over = sessions.take_over("enough".to_owned()).await;
    let turn = over.expect("a turn");
    assert!(claim.await.is_err());
    let next = sessions.begin(request(3), Some(turn));
    let session = next.expect("it begins");
    let id = session.id.clone();
    drop(session);
    bench.send(&id, 0, b"abc").await.expect("taken");
    begin().expect("no turn is left");
}

#[tokio::test]
async fn a_bundle_that_pid_1_refuses_early_is_given_up_at_once() {
    let bench = NodeUpdateBench::new();
    bench.judge(Verdict::RefusesAfter(2));
    let id = bench.begin(1000);
    bench.send(&id, 0, b"12").await.expect("taken");
    let session = bench.updates.0.sessions.current();
    if let Some(session) = session {
        let outcome = bench.updates.0.sessions.outcome(session).await;
        assert!(
            matches!(outcome, StagingOutcome::Refused { .. }),
            "{outcome:?}"
        );
    }
    let refused = bench.send(&id, 2, b"34").await.expect_err("it is over");
    let error = CallError::from(refused);
    assert_eq!(error.code, ErrorCode::Forbidden);
    let details = error.details.expect("details");
    assert_eq!(details["code"], "signature");
    assert_eq!(details["text"], "too few keys have signed");
    // PID 1 reads to the end of a bundle also after it has refused it, so the next one is not mixed with it.
    bench.judge(Verdict::Plans);
    let next = bench.begin(3);
    bench.send(&next, 0, b"abc").await.expect("taken");
    let bundles = bench.bundles();
    assert_eq!(bundles, [(b"12".to_vec(), false), (b"abc".to_vec(), true)]);
}

#[tokio::test]
async fn a_bundle_that_its_sender_gives_up_leaves_room_for_the_next() {
    let bench = NodeUpdateBench::new();
    let id = bench.begin(10);
    bench.send(&id, 0, b"12").await.expect("taken");
    let sessions = &bench.updates.0.sessions;
    assert_eq!(
        sessions.give_up((id.as_str(), "bob"), String::new()).await,
        Err(StagingError::NoSession)
    );
    let ended = sessions
        .give_up((id.as_str(), "ada"), "enough".to_owned())
        .await
        .expect("it was there");
    assert!(matches!(ended, StagingOutcome::GivenUp(_)), "{ended:?}");
    assert_eq!(bench.bundles(), [(b"12".to_vec(), false)]);
    let next = bench.begin(1);
    bench.send(&next, 0, b"1").await.expect("taken");
}

#[tokio::test]
async fn a_session_without_a_next_piece_ends() {
    let pace = StagingPace {
        // The first piece has to come within it.
        idle: alknet_test_support::deadline(Duration::from_millis(20)),
        ..StagingPace::default()
    };
    let bench = NodeUpdateBench::with("", pace, None);
    let id = bench.begin(10);
    bench.send(&id, 0, b"12").await.expect("taken");
    if let Some(session) = bench.updates.0.sessions.current() {
        bench.updates.0.sessions.outcome(session).await;
    }
    let late = bench.send(&id, 2, b"3").await;
    let Err(StagingError::Ended(outcome)) = late else {
        panic!("{late:?}");
    };
    let text = StagingError::Ended(outcome).to_string();
    assert!(text.contains("no piece came"), "{text}");
    assert_eq!(bench.bundles(), [(b"12".to_vec(), false)]);
}

#[tokio::test]
async fn a_dry_run_ends_with_what_pid_1_knows_and_stages_nothing() {
    let bench = NodeUpdateBench::new();
    bench.judge(Verdict::PlansAfter(3));
    let sessions = &bench.updates.0.sessions;
    let dry = StagingRequest {
        dry_run: true,
        ..request(1000)
    };
    let session = sessions.begin(dry, None).expect("it begins");
    let id = session.id.clone();
    bench.send(&id, 0, b"123").await.expect("taken");
    assert_eq!(
        sessions.outcome(session).await,
        StagingOutcome::Planned(plan())
    );
    assert_eq!(sessions.staged(), None);
    let (stage, by) = bench.requests().remove(0);
    assert!(matches!(
        stage,
        UpdateRequest::Stage {
            dry_run: true,
            bytes: 1000,
            ..
        }
    ));
    assert_eq!(by, "ada");
}

/// A client brings other signed metadata for the program that an administrator has staged.
#[tokio::test]
async fn the_plan_of_an_administrator_has_the_floor_that_a_client_brought() {
    let bench = NodeUpdateBench::new();
    let sessions = &bench.updates.0.sessions;
    let id = bench.begin(3);
    bench.send(&id, 0, b"abc").await.expect("taken");
    assert_eq!(sessions.staged(), Some(plan()));
    for floor in ["1.0.0", "1.1.0"] {
        bench.judge(Verdict::PlansFloor(floor));
        let of_client = StagingRequest {
            owner: "eve".to_owned(),
            by: "eve".to_owned(),
            limited: true,
            ..request(3)
        };
        let begun = sessions.begin(of_client, None);
        let id = begun.expect("it begins").id.clone();
        let piece = (0, Bytes::from_static(b"abc"));
        sessions.write((&id, "eve"), piece).await.expect("taken");
        let expected = UpdatePlan {
            floor: Some(floor.to_owned()),
            ..plan()
        };
        assert_eq!(sessions.staged(), Some(expected));
        // Neither the machine nor a hub may replace it.
        let by = sessions.staged_by().expect("a request");
        assert_eq!((by.by.as_str(), by.limited), ("ada", false));
    }
}

/// The channel to PID 1 breaks off while PID 1 has a whole bundle, which it may have staged over the version before.
#[tokio::test]
async fn a_bundle_at_whose_end_pid_1_does_not_listen_may_have_replaced_what_was_staged() {
    let (to_init, mut messages) = mpsc::channel(8);
    let (ours, theirs) = StdStream::pair().expect("sockets");
    let init = UpdateClient::new(Some(to_init), Some(UpdateStream::of_test(ours)));
    let pace = StagingPace {
        answer: Duration::from_millis(20),
        ..StagingPace::default()
    };
    let sessions = StagingSessions::new(init.clone(), pace, RequestCount::new(|| 0));
    let first = sessions.begin(request(4), None).expect("it begins");
    let message = messages.recv().await;
    let Some(InitMessage::Update { n, .. }) = message else {
        panic!("{message:?}");
    };
    init.answered(n, UpdateAnswer::Planned { plan: plan() });
    let staged = sessions.outcome(first).await;
    assert_eq!(staged, StagingOutcome::Planned(plan()));
    assert_eq!(sessions.staged(), Some(plan()));
    let second = sessions.begin(request(4), None).expect("it begins");
    assert!(messages.recv().await.is_some());
    drop(messages);
    let piece = (0, Bytes::from_static(b"next"));
    let ended = sessions.write((&second.id, "ada"), piece).await;
    let Err(StagingError::Ended(outcome)) = ended else {
        panic!("{ended:?}");
    };
    let broken = UpdateClientError::Broken.to_string();
    assert_eq!(*outcome, StagingOutcome::Unanswered(broken));
    assert_eq!(sessions.staged(), None);
    assert!(sessions.staged_by().is_none());
    drop(theirs);
}

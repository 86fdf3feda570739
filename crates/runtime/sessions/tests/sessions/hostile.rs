//! Scripts that mean no good: each ends with its code, and a session of another tenant answers all
//! the while.

mod table;

use std::collections::BTreeMap;
use std::time::Duration;

use alknet_runtime::{Code, Mode};
use alknet_sessions::{Session, SessionSpec};
use alknet_worker::Reason;
use serde_json::json;

use crate::support::{Lab, Request, export, main, soon, spec_of};
use table::{Case, Kind, cases};

/// Processor time of each: what nothing inside stops is killed after it.
const CPU: Duration = Duration::from_millis(150);
/// By the clock on the wall: for what waits, and for machines that have no time for it.
const WALL: Duration = Duration::from_secs(5);

fn hostile(case: &Case) -> SessionSpec {
    let mut spec = spec_of("hostile", &case.source);
    spec.limits.runtime.cpu = CPU;
    spec.limits.wall = WALL;
    match case.kind {
        Kind::Fuel => {
            spec.limits.runtime.fuel_ticks = 50;
            spec.limits.runtime.cpu = Duration::from_secs(60);
        }
        Kind::Wall => spec.limits.wall = Duration::from_millis(150),
        _ => spec.limits.runtime.fuel_ticks = 10_000_000,
    }
    if matches!(case.kind, Kind::Memory | Kind::Refused(_) | Kind::Stack) {
        // Time must not come first, however slow the machine is.
        spec.limits.runtime.cpu = Duration::from_secs(60);
        spec.limits.wall = Duration::from_secs(60);
    }
    spec
}

/// The codes that a case may end with.
fn codes(kind: Kind) -> &'static [Code] {
    match kind {
        Kind::Fuel => &[Code::Fuel],
        Kind::Memory => &[Code::Memory],
        Kind::Stack => &[Code::Stack],
        Kind::Time | Kind::Wall => &[Code::Timeout],
        Kind::Refused(code) => match code {
            Code::Denied => &[Code::Denied],
            Code::Encode => &[Code::Encode],
            Code::Fuel => &[Code::Fuel],
            Code::Limit => &[Code::Limit],
            Code::NotFound => &[Code::NotFound],
            Code::Quota => &[Code::Quota],
            Code::TsUnsupported => &[Code::TsUnsupported],
            _ => &[Code::Exception],
        },
        // Which of its limits such a loop meets first depends on the machine; that it meets one does
        // not.
        Kind::AnyLimit => &[
            Code::Exception,
            Code::Fuel,
            Code::Memory,
            Code::Stack,
            Code::Timeout,
        ],
        Kind::Harmless => &[],
    }
}

async fn pongs(witness: &Session, request: &Request, what: &str) {
    let pong = soon(witness.run(&request.env(), export("ping", json!(what)))).await;
    let pong = pong.unwrap_or_else(|failure| panic!("{what}: {failure}"));
    assert_eq!(pong.value, json!(["pong", what]));
}

/// What came of a case, if it is not what should have come.
async fn wrong(lab: &Lab, request: &Request, witness: &Session, case: &Case) -> Option<String> {
    let env = request.env();
    let session = match lab.sessions.open(&env, hostile(case)).await {
        Ok(session) => session,
        Err(failure) => return Some(format!("{}: not opened: {failure}", case.name)),
    };
    let runs = soon(session.run(&env, main()));
    // While it runs, and after.
    let (ended, ()) = tokio::join!(runs, pongs(witness, request, case.name));
    pongs(witness, request, case.name).await;
    match (ended, case.kind) {
        (Ok(_), Kind::Harmless) => None,
        (Err(failure), kind) if codes(kind).contains(&failure.code) => None,
        (ended, kind) => {
            let ended = ended.map(|ran| ran.value);
            Some(format!("{}: expected {kind:?}: {ended:?}", case.name))
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_case_ends_with_its_code_while_others_are_served() {
    let lab = Lab::new();
    let request = lab.request().await;
    let mut witness = spec_of("witness", "export const ping = (what) => ['pong', what]");
    witness.mode = Mode::Service;
    let witness = lab.open(&request, witness).await;
    pongs(&witness, &request, "before").await;
    let cases = cases();
    let names: BTreeMap<_, _> = cases.iter().map(|case| (case.name, case.kind)).collect();
    assert_eq!(names.len(), cases.len(), "every name once");
    assert!(cases.len() >= 110, "{}", cases.len());
    let mut all = Vec::new();
    for case in &cases {
        all.extend(wrong(&lab, &request, &witness, case).await);
    }
    assert!(
        all.is_empty(),
        "{} of {}:\n{}",
        all.len(),
        cases.len(),
        all.join("\n")
    );
    // Some were ended from outside, and none brought its worker down.
    let ended = lab.sessions.workers().stats().ended;
    let count = |reason: Reason| ended.get(&reason).copied().unwrap_or_default();
    assert!(count(Reason::Cpu) + count(Reason::Wall) > 0, "{ended:?}");
    let bad = [
        Reason::Crash,
        Reason::Violation,
        Reason::Exit,
        Reason::Protocol,
        Reason::Flood,
    ];
    assert!(bad.iter().all(|reason| count(*reason) == 0), "{ended:?}");
}

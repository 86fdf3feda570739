//! `ops.test`: an operation of the session against cases, each in an engine of its own.
//!
//! A case starts from what the session evaluated, with a fixed clock and seed and with recorded
//! answers instead of the host. It runs twice; both runs must give the same bytes and take the same
//! fuel.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::canonical;
use super::replay::{Recorded, Replay};
use crate::error::{Code, Failure, OpError};
use crate::host::{Host, Reply};
use crate::isolate::{Gauge, Isolate, Outcome, Root, Shared, Spec, Work};
use crate::limits::TEST_CASES;

/// Seed of every case.
pub const TEST_SEED: [u8; 32] = [7; 32];
/// Clock of every case when it begins: 2025-01-01T00:00:00Z.
pub const TEST_START_MS: i64 = 1_735_689_600_000;

/// One case.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// For people.
    #[serde(default)]
    pub name: String,
    /// What the handler is given.
    #[serde(default)]
    pub input: Value,
    /// What its calls are answered with.
    #[serde(default)]
    pub calls: Vec<Recorded>,
    /// What it has to answer.
    pub expect: Expect,
}

/// What a case has to answer.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Expect {
    /// Exactly this.
    Output(Value),
    /// An error with this code, its own or the runtime's.
    Error(String),
    /// Something that fits this JSON Schema.
    Schema(Value),
}

/// How one case went.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct CaseReport {
    /// Its name.
    pub name: String,
    /// Whether it answered what was expected, twice the same.
    pub passed: bool,
    /// Why not.
    pub reason: Option<String>,
    /// Ticks of fuel.
    pub fuel: u64,
}

/// How all of them went.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Report {
    /// The operation.
    pub name: String,
    /// Whether every case passed, and there was one.
    pub passed: bool,
    /// One for one.
    pub cases: Vec<CaseReport>,
    /// Fuel of the median case and of the one that 99 of 100 stay below.
    pub fuel: Percentiles,
    /// Declared error codes that no case expects.
    pub uncovered: Vec<String>,
}

/// Two figures of a distribution.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Percentiles {
    /// Half of them are at or below.
    pub p50: u64,
    /// 99 of 100 are at or below.
    pub p99: u64,
}

/// Everything that the cases need of the session, so that they can run beside it.
struct Setting {
    name: String,
    cases: Vec<Case>,
    declared: Vec<String>,
    roots: Vec<Root>,
    spec: Spec,
    host: Arc<dyn Host>,
    gauge: Arc<Gauge>,
}

/// The work behind `ops.test`; its answer is a [`Report`].
pub(super) fn begin(
    shared: &Shared,
    name: String,
    cases: Value,
) -> Result<LocalBoxFuture<'static, Result<Option<Reply>, OpError>>, Failure> {
    let cases: Vec<Case> = serde_json::from_value(cases)
        .map_err(|error| Failure::new(Code::Limit, format!("not a list of cases: {error}")))?;
    if cases.len() > TEST_CASES {
        return Err(Failure::new(Code::Limit, "a test has at most 256 cases"));
    }
    // Inside a case the module runs from its beginning, and with it this call.
    if shared.spec.testing {
        let skipped =
            serde_json::json!({ "name": name, "passed": true, "cases": [], "skipped": true });
        return Ok(std::future::ready(Ok(Some(Reply::Json(skipped)))).boxed_local());
    }
    let declared = match shared.offered.borrow().get(&name) {
        Some(offered) => offered.registration.errors.keys().cloned().collect(),
        None => {
            return Err(Failure::new(
                Code::NotFound,
                format!("no operation js/{name} is registered"),
            ));
        }
    };
    let mut spec = shared.spec.clone().deterministic(TEST_SEED, TEST_START_MS);
    spec.testing = true;
    let setting = Setting {
        name,
        cases,
        declared,
        roots: shared.roots.borrow().clone(),
        spec,
        host: Arc::clone(&shared.host),
        gauge: Arc::clone(&shared.gauge),
    };
    let work = async move {
        let report = setting.run().await;
        let report = serde_json::to_value(report).unwrap_or_default();
        Ok(Some(Reply::Json(report)))
    };
    Ok(work.boxed_local())
}

impl Setting {
    async fn run(self) -> Report {
        let mut reports = Vec::with_capacity(self.cases.len());
        for case in &self.cases {
            reports.push(self.case(case).await);
        }
        let mut fuel: Vec<u64> = reports.iter().map(|report| report.fuel).collect();
        fuel.sort_unstable();
        let at = |hundredths: usize| {
            let index = (fuel.len() * hundredths).div_ceil(100).saturating_sub(1);
            fuel.get(index).copied().unwrap_or(0)
        };
        let expected: BTreeSet<&str> = self
            .cases
            .iter()
            .filter_map(|case| match &case.expect {
                Expect::Error(code) => Some(code.as_str()),
                _ => None,
            })
            .collect();
        let uncovered = self
            .declared
            .iter()
            .filter(|code| !expected.contains(code.as_str()));
        Report {
            passed: !reports.is_empty() && reports.iter().all(|report| report.passed),
            fuel: Percentiles {
                p50: at(50),
                p99: at(99),
            },
            uncovered: uncovered.cloned().collect(),
            name: self.name.clone(),
            cases: reports,
        }
    }

    async fn case(&self, case: &Case) -> CaseReport {
        let first = self.once(case).await;
        let second = self.once(case).await;
        let same = first.result == second.result && first.stats.ticks == second.stats.ticks;
        let reason = match same {
            true => self.differs(&case.expect, &first.result),
            false => Some("two runs differ".to_owned()),
        };
        CaseReport {
            name: case.name.clone(),
            passed: reason.is_none(),
            reason,
            fuel: first.stats.ticks,
        }
    }

    /// What the session evaluated, then the handler.
    async fn once(&self, case: &Case) -> Outcome {
        let host = Arc::new(Replay::new(&case.calls, Arc::clone(&self.host)));
        let failed = |failure| Outcome {
            entry: 0,
            result: Err(failure),
            shown: None,
            stats: crate::isolate::Stats::default(),
        };
        let opened = Isolate::open_under(self.spec.clone(), host, Some(Arc::clone(&self.gauge)));
        let mut isolate = match opened {
            Ok(isolate) => isolate,
            Err(failure) => return failed(failure),
        };
        for root in &self.roots {
            let work = match root {
                Root::Module(module) => Work::Module {
                    module: module.clone(),
                },
                Root::Script(source) => Work::Script {
                    source: source.clone(),
                },
            };
            // A module that fails here failed in the session as well; what it registered until
            // then is what is tested.
            drop(isolate.run(work).await);
        }
        let work = Work::Handler {
            name: self.name.clone(),
            input: case.input.clone(),
        };
        isolate.run(work).await
    }

    fn differs(&self, expect: &Expect, result: &Result<Value, Failure>) -> Option<String> {
        match (expect, result) {
            (Expect::Output(expected), Ok(output)) if canonical(expected) == canonical(output) => {
                None
            }
            (Expect::Output(_), Ok(output)) => Some(format!("it answered {output}")),
            (Expect::Schema(schema), Ok(output)) => self.host.check(schema, output).err(),
            (Expect::Error(_), Ok(_)) => Some("it did not fail".to_owned()),
            (Expect::Error(code), Err(failure)) => {
                let own = failure.operation.as_ref().map(|error| error.code.as_str());
                let matches = own == Some(code) || own.is_none() && failure.code.name() == code;
                (!matches).then(|| format!("it failed with {failure}"))
            }
            (_, Err(failure)) => Some(format!("it failed with {failure}")),
        }
    }
}

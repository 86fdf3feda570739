//! `ops.test`: runs an operation of the session with test cases, each in an engine of its own.
//!
//! A case begins with what the session evaluated, with a fixed clock and seed, and with recorded
//! answers instead of the host. It runs twice, and both runs must give the same bytes and use the
//! same fuel.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::canonical;
use super::replay::{RecordedCall, Replay};
use crate::error::{OpError, RuntimeCode, ScriptFailure};
use crate::host::{IsolateHost, OpReply};
use crate::isolate::{
    EntryOutcome, EvaluationRoot, InterruptBudget, Isolate, IsolateSpec, IsolateState, IsolateWork,
};
use crate::limits::TEST_CASES;

/// The seed of all cases.
pub const TEST_SEED: [u8; 32] = [7; 32];
/// The clock of a case at its beginning: 2025-01-01T00:00:00Z.
pub const TEST_START_MS: i64 = 1_735_689_600_000;

/// One case.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ScriptTestCase {
    /// A description for people.
    #[serde(default)]
    pub name: String,
    /// The handler's input.
    #[serde(default)]
    pub input: Value,
    /// The recorded answers to its calls.
    #[serde(default)]
    pub calls: Vec<RecordedCall>,
    /// The expected answer.
    pub expect: CaseExpectation,
}

/// The expected answer of a case.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CaseExpectation {
    /// Exactly this value.
    Output(Value),
    /// An error with this code, its own or the runtime's.
    Error(String),
    /// A value that matches this JSON Schema.
    Schema(Value),
}

/// The result of one case.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct CaseReport {
    /// The name of the case.
    pub name: String,
    /// Whether both runs gave the expected answer and were equal.
    pub passed: bool,
    /// The reason why it failed.
    pub reason: Option<String>,
    /// Ticks of fuel.
    pub fuel: u64,
}

/// The result of all cases.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct ScriptTestReport {
    /// The name of the operation.
    pub name: String,
    /// Whether there was a case and all cases passed.
    pub passed: bool,
    /// The results of the cases, in their order.
    pub cases: Vec<CaseReport>,
    /// The fuel of the median case, and the most that 99 of 100 cases use.
    pub fuel: Percentiles,
    /// The declared error codes that no case expects.
    pub uncovered: Vec<String>,
}

/// Two percentiles of a distribution.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Percentiles {
    /// Half of the values are at most this.
    pub p50: u64,
    /// 99 of 100 values are at most this.
    pub p99: u64,
}

/// All that the cases need of the session, so that they can run beside it.
struct CaseSetting {
    name: String,
    cases: Vec<ScriptTestCase>,
    declared: Vec<String>,
    roots: Vec<EvaluationRoot>,
    spec: IsolateSpec,
    host: Arc<dyn IsolateHost>,
    budget: Arc<InterruptBudget>,
}

/// The work of `ops.test`; its answer is a [`ScriptTestReport`].
pub(super) fn begin(
    shared: &IsolateState,
    name: String,
    cases: Value,
) -> Result<LocalBoxFuture<'static, Result<Option<OpReply>, OpError>>, ScriptFailure> {
    let cases: Vec<ScriptTestCase> = serde_json::from_value(cases).map_err(|error| {
        ScriptFailure::new(RuntimeCode::Limit, format!("not a list of cases: {error}"))
    })?;
    if cases.len() > TEST_CASES {
        return Err(ScriptFailure::new(
            RuntimeCode::Limit,
            "a test has at most 256 cases",
        ));
    }
    // Inside a case, the module runs from its beginning, which includes this call.
    if shared.spec.testing {
        let skipped =
            serde_json::json!({ "name": name, "passed": true, "cases": [], "skipped": true });
        return Ok(std::future::ready(Ok(Some(OpReply::Json(skipped)))).boxed_local());
    }
    let declared = match shared.offered.borrow().get(&name) {
        Some(offered) => offered.registration.errors.keys().cloned().collect(),
        None => {
            return Err(ScriptFailure::new(
                RuntimeCode::NotFound,
                format!("no operation js/{name} is registered"),
            ));
        }
    };
    let mut spec = shared.spec.clone().deterministic(TEST_SEED, TEST_START_MS);
    // With this mark, a call of `ops.test` inside a case runs no further cases.
    spec.testing = true;
    let setting = CaseSetting {
        name,
        cases,
        declared,
        roots: shared.roots.borrow().clone(),
        spec,
        host: Arc::clone(&shared.host),
        budget: Arc::clone(&shared.budget),
    };
    let work = async move {
        let report = setting.run().await;
        // A report has only texts, numbers, booleans and lists, so its conversion does not fail.
        let report = serde_json::to_value(report).unwrap_or_default();
        Ok(Some(OpReply::Json(report)))
    };
    Ok(work.boxed_local())
}

impl CaseSetting {
    async fn run(self) -> ScriptTestReport {
        let mut reports = Vec::with_capacity(self.cases.len());
        for case in &self.cases {
            reports.push(self.case(case).await);
        }
        let mut fuel: Vec<u64> = reports.iter().map(|report| report.fuel).collect();
        fuel.sort_unstable();
        let at = |hundredths: usize| {
            // This is the nearest-rank percentile.
            let index = (fuel.len() * hundredths).div_ceil(100).saturating_sub(1);
            fuel.get(index).copied().unwrap_or(0)
        };
        let expected: BTreeSet<&str> = self
            .cases
            .iter()
            .filter_map(|case| match &case.expect {
                CaseExpectation::Error(code) => Some(code.as_str()),
                _ => None,
            })
            .collect();
        let uncovered = self
            .declared
            .iter()
            .filter(|code| !expected.contains(code.as_str()));
        ScriptTestReport {
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

    async fn case(&self, case: &ScriptTestCase) -> CaseReport {
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

    /// Evaluates what the session evaluated, and then runs the handler.
    async fn once(&self, case: &ScriptTestCase) -> EntryOutcome {
        let host = Arc::new(Replay::new(&case.calls, Arc::clone(&self.host)));
        let failed = |failure| EntryOutcome {
            entry: 0,
            result: Err(failure),
            shown: None,
            stats: crate::isolate::EntryStats::default(),
        };
        let opened = Isolate::open_under(self.spec.clone(), host, Some(Arc::clone(&self.budget)));
        let mut isolate = match opened {
            Ok(isolate) => isolate,
            Err(failure) => return failed(failure),
        };
        for root in &self.roots {
            let work = match root {
                EvaluationRoot::Module(module) => IsolateWork::Module {
                    module: module.clone(),
                },
                EvaluationRoot::Script(source) => IsolateWork::Script {
                    source: source.clone(),
                },
            };
            // A module that fails here failed in the session too; the test covers what it
            // registered until then.
            drop(isolate.run(work).await);
        }
        let work = IsolateWork::Handler {
            name: self.name.clone(),
            input: case.input.clone(),
        };
        isolate.run(work).await
    }

    fn differs(
        &self,
        expect: &CaseExpectation,
        result: &Result<Value, ScriptFailure>,
    ) -> Option<String> {
        match (expect, result) {
            (CaseExpectation::Output(expected), Ok(output))
                if canonical(expected) == canonical(output) =>
            {
                None
            }
            (CaseExpectation::Output(expected), Ok(output)) => {
                Some(format!("expected {expected}, got {output}"))
            }
            (CaseExpectation::Schema(schema), Ok(output)) => self.host.check(schema, output).err(),
            (CaseExpectation::Error(_), Ok(_)) => Some("it did not fail".to_owned()),
            (CaseExpectation::Error(code), Err(failure)) => {
                // A failure with a code of the operation also has a code of the runtime, which does
                // not count here.
                let own = failure.operation.as_ref().map(|error| error.code.as_str());
                let matches = own == Some(code) || own.is_none() && failure.code.name() == code;
                (!matches).then(|| format!("it failed with {}", failure.for_author()))
            }
            (_, Err(failure)) => Some(format!("it failed with {}", failure.for_author())),
        }
    }
}

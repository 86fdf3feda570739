//! Runs a bundle's tests in isolation from its author: each case runs twice, in an engine of its own, with recorded
//! answers for its calls.

use std::collections::BTreeSet;
use std::sync::Arc;

use alknet_core::{BoxFuture, PeerId};
use alknet_runtime::ops::{
    CaseExpectation, CaseReport, Percentiles, ScriptTestCase, ScriptTestReport, TEST_SEED,
    TEST_START_MS,
};
use alknet_runtime::{
    IsolateSpec, IsolateWork, ModuleSet, RecordedCall, RuntimeCode as FailureCode, ScriptFailure,
    canonical,
};
use futures_util::{StreamExt, TryStreamExt, stream};
use serde_json::Value;

use crate::bundle::{FuelPercentiles, OperationCode, PromotionBundle};
use crate::limits::{CASES_AT_ONCE, TRIAL_MAX};
use crate::schema::{self, SchemaMismatch};

/// Runs an author's code outside the node's process; the sessions in workers implement it.
pub trait TestRunner: Send + Sync + 'static {
    /// Performs all steps of `run` in one fresh engine, with [`TrialRun::spec`] and a
    /// [`Replay`](alknet_runtime::Replay) of its calls as its host. Returns the result of the last step, or of an
    /// earlier step that failed.
    fn run(&self, run: TrialRun) -> BoxFuture<'static, TrialResult>;
}

/// One run in an engine of its own.
#[derive(Clone, Debug)]
pub struct TrialRun {
    /// All modules of the code.
    pub modules: Arc<ModuleSet>,
    /// Whether the built-in objects are frozen, because the modules have several authors.
    pub frozen: bool,
    /// The steps, in order.
    pub steps: Vec<IsolateWork>,
    /// The recorded answers to its calls; any other call fails with `NOT_FOUND`.
    pub calls: Vec<RecordedCall>,
}

impl TrialRun {
    /// The engine for the run, with default limits and the clock and the seed of all tests.
    #[must_use]
    pub fn spec(&self) -> IsolateSpec {
        let mut spec = IsolateSpec::new(ModuleSet::new()).deterministic(TEST_SEED, TEST_START_MS);
        spec.modules = Arc::clone(&self.modules);
        spec.frozen = self.frozen;
        spec
    }
}

/// The result of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct TrialResult {
    /// The result of the last step.
    pub result: Result<Value, ScriptFailure>,
    /// The fuel of the last step, in ticks.
    pub ticks: u64,
}

/// Scans the sources of a bundle in a worker.
///
/// # Errors
/// The worker was lost, or its answer is malformed.
pub(crate) async fn scan_sources(
    runner: &dyn TestRunner,
    bundle: &PromotionBundle,
) -> Result<crate::check::Seen, ScriptFailure> {
    let mut modules = ModuleSet::new();
    for (name, text) in &bundle.content().modules {
        modules.insert(name, text.as_str())?;
    }
    let run = TrialRun {
        modules: Arc::new(modules),
        frozen: false,
        steps: vec![IsolateWork::Look],
        calls: Vec::new(),
    };
    let ran = bounded(runner.run(run)).await?;
    crate::check::read(&ran.result?, bundle)
}

/// Runs each case of the `tests` of `author` twice.
///
/// # Errors
/// The cases together took too long, or there was no room for one. Nothing is known about the bundle then.
pub(crate) async fn trial(
    runner: &dyn TestRunner,
    code: &OperationCode,
    (author, tests): (&PeerId, &[ScriptTestCase]),
) -> Result<ScriptTestReport, ScriptFailure> {
    let mut all = Vec::with_capacity(tests.len());
    for test in tests {
        all.push(case(runner, code, (author, test)));
    }
    let all = stream::iter(all).buffered(CASES_AT_ONCE);
    let cases = bounded(all.try_collect::<Vec<_>>()).await??;
    Ok(report(code, tests, cases))
}

async fn bounded<T>(work: impl Future<Output = T>) -> Result<T, ScriptFailure> {
    let done = tokio::time::timeout(TRIAL_MAX, work).await;
    done.map_err(|_| {
        let text = format!(
            "the tests together took longer than {} s",
            TRIAL_MAX.as_secs()
        );
        ScriptFailure::new(FailureCode::Timeout, text)
    })
}

fn report(
    code: &OperationCode,
    tests: &[ScriptTestCase],
    cases: Vec<CaseReport>,
) -> ScriptTestReport {
    let fuel = FuelPercentiles::from_ticks(cases.iter().map(|case| case.fuel).collect());
    let expected: BTreeSet<&str> = tests
        .iter()
        .filter_map(|test| match &test.expect {
            CaseExpectation::Error(code) => Some(code.as_str()),
            _ => None,
        })
        .collect();
    let declared = code.spec.errors.keys();
    let uncovered = declared.filter(|code| !expected.contains(code.as_str()));
    ScriptTestReport {
        name: code.name().to_owned(),
        // Without a case, nothing was tested.
        passed: !cases.is_empty() && cases.iter().all(|case| case.passed),
        fuel: Percentiles {
            p50: fuel.p50,
            p99: fuel.p99,
        },
        uncovered: uncovered.cloned().collect(),
        cases,
    }
}

async fn case(
    runner: &dyn TestRunner,
    code: &OperationCode,
    (author, test): (&PeerId, &ScriptTestCase),
) -> Result<CaseReport, ScriptFailure> {
    let run = || TrialRun {
        modules: Arc::clone(&code.modules),
        frozen: code.frozen,
        steps: code.steps(test.input.clone()),
        calls: test.calls.clone(),
    };
    // Code whose result depends on anything but its input differs between two runs.
    let first = runner.run(run()).await;
    let second = runner.run(run()).await;
    for ran in [&first, &second] {
        // Nothing is known about the code then, and a failed case would count against it.
        if let Err(failure) = &ran.result
            && failure.is_no_capacity()
        {
            return Err(failure.clone());
        }
    }
    let reason = match first == second {
        true => differs(author, &test.expect, &first.result)?,
        false => Some("two runs differ".to_owned()),
    };
    Ok(CaseReport {
        name: test.name.clone(),
        passed: reason.is_none(),
        reason,
        fuel: first.ticks,
    })
}

/// The difference between a result and the expectation.
///
/// # Errors
/// The result was not checked, because there was no room for the check.
fn differs(
    author: &PeerId,
    expect: &CaseExpectation,
    result: &Result<Value, ScriptFailure>,
) -> Result<Option<String>, ScriptFailure> {
    Ok(match (expect, result) {
        (CaseExpectation::Output(expected), Ok(output))
            if canonical(expected) == canonical(output) =>
        {
            None
        }
        (CaseExpectation::Output(expected), Ok(output)) => Some(format!(
            "expected {}, got {}",
            shown(expected),
            shown(output)
        )),
        (CaseExpectation::Schema(schema), Ok(output)) => {
            match schema::check(schema, output, author) {
                Ok(()) => None,
                Err(SchemaMismatch::No(reason)) => Some(reason),
                Err(SchemaMismatch::Busy(text)) => return Err(ScriptFailure::no_capacity(text)),
            }
        }
        (CaseExpectation::Error(_), Ok(_)) => Some("it did not fail".to_owned()),
        (CaseExpectation::Error(code), Err(failure)) => {
            let own = failure.operation.as_ref().map(|error| error.code.as_str());
            let matches = own == Some(code) || own.is_none() && failure.code.name() == code;
            (!matches).then(|| format!("it failed with {}", failure.for_author()))
        }
        (_, Err(failure)) => Some(format!("it failed with {}", failure.for_author())),
    })
}

/// The beginning of an answer, for the report's readers.
fn shown(output: &Value) -> String {
    const SHOWN: usize = 200;
    let text = output.to_string();
    // The cut is between two characters, because slicing within one would panic.
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

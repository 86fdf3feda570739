//! The report on the tests of a proposal, as a person reads it.

use serde_json::Value;

use super::CommandError;

/// The error of a bundle whose tests fail, with a line for each of these in the place of the report.
pub(super) fn failed_tests(mut failure: CommandError) -> CommandError {
    let report = failure.details.as_ref().map(|it| &it["report"]["cases"]);
    let Some(cases) = report.and_then(Value::as_array) else {
        return failure;
    };
    let failed = cases.iter().filter(|case| case["passed"] == false);
    let line = |case: &Value| {
        let text = |name: &str| case[name].as_str().unwrap_or_default();
        format!("test '{}' failed: {}", text("name"), text("reason"))
    };
    failure.further = failed.map(line).collect();
    "the bundle does not pass its tests".clone_into(&mut failure.message);
    failure.details = None;
    failure
}

/// A line for each test of a report.
pub(super) fn case_lines(report: &Value) -> Vec<String> {
    let cases = report["cases"].as_array().into_iter().flatten();
    let line = |case: &Value| {
        let name = case["name"].as_str().unwrap_or_default();
        let passed = match case["passed"] == true {
            true => "passed",
            false => "failed",
        };
        let reason = match case["reason"].as_str() {
            Some(reason) => format!(": {reason}"),
            None => String::new(),
        };
        // A script that is over before the engine first counts used none that it knows of.
        let fuel = match case["fuel"].as_u64() {
            Some(0) | None => String::new(),
            Some(fuel) => format!(" ({fuel} ticks)"),
        };
        format!("test {passed}: {name}{reason}{fuel}")
    };
    cases.map(line).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::CommandExit;
    use super::*;

    #[test]
    fn a_bundle_whose_tests_fail_gets_a_line_for_each() {
        let mut failure = CommandError::new(CommandExit::Failed, "TESTS_FAILED", "see details");
        assert_eq!(failed_tests(failure.clone()), failure);
        failure.details = Some(Box::new(json!({ "report": { "cases": [
            { "name": "the rate", "passed": false, "reason": "expected 50, got 55" },
            { "name": "none", "passed": true },
        ] } })));
        let shown = failed_tests(failure);
        assert_eq!(
            shown.to_string(),
            "TESTS_FAILED: the bundle does not pass its tests"
        );
        assert_eq!(
            shown.further,
            ["test 'the rate' failed: expected 50, got 55"]
        );
    }
}

//! Scans sources without running them, for their imports and for calls that make code of text.
//!
//! The engine has neither `eval` nor `Function('…')` for a promoted operation, and loads nothing from outside the
//! bundle. So the scan is no protection: it warns an author early, and shows a reviewer the fault. A worker parses
//! the sources, because unknown peers may have written them ([`Work::Look`](alknet_runtime::IsolateWork::Look)); this
//! module judges the result.

use std::collections::BTreeMap;

use alknet_runtime::{ModuleSet, RuntimeCode, ScriptFailure, SourceScan};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::bundle::PromotionBundle;
use crate::limits::FINDINGS_MAX;

/// A fault of a bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// `eval`, `fuel`, `graph`, `secret` or `source`.
    pub check: String,
    /// The module, or the location in the document.
    pub module: String,
    /// The line of the module, from 1; 0 if the finding has no line.
    pub line: u32,
    /// A description for people.
    pub what: String,
}

impl Finding {
    pub(crate) fn new(check: &str, module: &str, line: u32, what: impl Into<String>) -> Self {
        Self {
            check: check.to_owned(),
            module: module.to_owned(),
            line,
            what: what.into(),
        }
    }
}

/// The scan of each module.
pub(crate) type Seen = BTreeMap<String, Result<SourceScan, ScriptFailure>>;

/// Reads the answer to [`Work::Look`](alknet_runtime::IsolateWork::Look). The sources may have compromised the
/// worker, so this checks that each module is there.
///
/// # Errors
/// The answer is malformed or lacks a module.
pub(crate) fn read(answer: &Value, bundle: &PromotionBundle) -> Result<Seen, ScriptFailure> {
    let malformed = || {
        ScriptFailure::new(
            RuntimeCode::WorkerLost,
            "the worker's answer about sources is malformed",
        )
    };
    let answer = answer.as_object().ok_or_else(malformed)?;
    let one = |module: &String| {
        let scan = answer.get(module).ok_or_else(malformed)?;
        let looked = match (scan.get("found"), scan.get("failed")) {
            (Some(found), None) => Ok(serde_json::from_value(found.clone())),
            (None, Some(failed)) => Err(serde_json::from_value(failed.clone())),
            _ => return Err(malformed()),
        };
        let looked = match looked {
            Ok(found) => Ok(found.map_err(|_| malformed())?),
            Err(failed) => Err(failed.map_err(|_| malformed())?),
        };
        Ok((module.clone(), looked))
    };
    bundle.content().modules.keys().map(one).collect()
}

/// The promoted code that the modules import, as `op:<path>@<version>`, each once.
#[must_use]
pub(crate) fn imports(seen: &Seen) -> Vec<String> {
    let looked = seen.values().filter_map(|it| it.as_ref().ok());
    let named = looked.flat_map(|it| it.imports.iter().filter_map(|it| it.specifier.clone()));
    let mut named: Vec<_> = named.filter(|name| name.starts_with("op:")).collect();
    named.sort();
    named.dedup();
    named
}

/// All faults of a bundle's modules. `modules` is the set with which they will run.
#[must_use]
pub(crate) fn check(seen: &Seen, modules: &ModuleSet) -> Vec<Finding> {
    let mut found = Vec::new();
    for (module, looked) in seen {
        match looked {
            Ok(looked) => one(&mut found, module, looked, modules),
            Err(failure) => {
                let line = failure.place.as_ref().map_or(0, |place| place.line);
                found.push(Finding::new("source", module, line, &failure.message));
            }
        }
        if found.len() >= FINDINGS_MAX {
            // A single module may have many findings.
            found.truncate(FINDINGS_MAX);
            break;
        }
    }
    found
}

fn one(found: &mut Vec<Finding>, module: &str, looked: &SourceScan, modules: &ModuleSet) {
    for maker in &looked.makers {
        let what = format!(
            "'{}' makes code of text; a bundle's code is what was reviewed",
            maker.name
        );
        found.push(Finding::new("eval", module, maker.line, what));
    }
    for import in &looked.imports {
        let what = match &import.specifier {
            Some(name) if modules.resolve(module, name).is_ok() => continue,
            Some(name) => format!("'{name}' is not in the bundle"),
            None => "what import() loads has to be written as one text".to_owned(),
        };
        found.push(Finding::new("graph", module, import.line, what));
    }
    if looked.cut {
        let what = "it imports more, or makes code more often, than a reviewer can read";
        found.push(Finding::new("source", module, 0, what));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn bundle() -> PromotionBundle {
        use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
        let pair = Ed25519KeyPair::from_seed_unchecked(&[9; 32]).expect("a seed");
        let key =
            alknet_core::PeerKey::Ed25519(pair.public_key().as_ref().try_into().expect("32 bytes"));
        let content = json!({
            "format": 1, "engine": alknet_runtime::ENGINE, "entry": "./a.js", "export": "run",
            "spec": { "name": "a", "kind": "query" }, "author": "ada", "key": key,
            "modules": { "./a.js": "", "./b.js": "" }, "fuel": { "p50": 1, "p99": 1 },
            "tests": [{ "expect": { "output": 1 } }],
        });
        let content = serde_json::from_value(content).expect("a content");
        let sign = |text: &[u8]| pair.sign(text).as_ref().try_into().expect("64 bytes");
        PromotionBundle::sign(&content, sign).expect("a bundle")
    }

    /// A worker that what it read has taken over says whatever it likes.
    #[test]
    fn an_answer_that_is_none_is_refused() {
        let none = json!({ "found": { "imports": [], "makers": [] } });
        assert!(read(&json!({ "./a.js": none, "./b.js": none }), &bundle()).is_ok());
        for strange in [
            json!(null),
            json!([]),
            json!({}),
            json!({ "./a.js": none }),
            json!({ "./a.js": none, "./b.js": {} }),
            json!({ "./a.js": none, "./b.js": { "found": {}, "failed": {} } }),
            json!({ "./a.js": none, "./b.js": { "found": { "imports": 1 } } }),
            json!({ "./a.js": none, "./b.js": { "failed": 1 } }),
        ] {
            let refused = read(&strange, &bundle()).expect_err("none");
            assert_eq!(refused.code, RuntimeCode::WorkerLost, "{strange}");
        }
    }

    #[test]
    fn findings_are_bounded() {
        let maker = json!({ "name": "eval", "line": 1 });
        let many = json!({ "imports": [], "makers": vec![maker; 1_000], "cut": true });
        let answer = json!({ "./a.js": { "found": many }, "./b.js": { "found": many } });
        let seen = read(&answer, &bundle()).expect("an answer");
        assert_eq!(check(&seen, &ModuleSet::new()).len(), FINDINGS_MAX);
    }
}

//! A bundle in the form in which it runs.

use std::sync::Arc;

use alknet_runtime::{
    IsolateWork, Language, ModuleSet, RuntimeCode as FailureCode, ScriptFailure, ScriptRegistration,
};
use serde_json::Value;

use super::{Blake3Hash, PromotionBundle};
use crate::limits::IMPORT_DEPTH_MAX;

/// The code of an operation and where it begins.
#[derive(Clone, Debug)]
pub struct OperationCode {
    /// The id of the bundle.
    pub id: Blake3Hash,
    /// What the operation is.
    pub spec: ScriptRegistration,
    /// All modules that the code can import.
    pub modules: Arc<ModuleSet>,
    /// Whether the engine must freeze its built-in objects first, because the modules have several authors.
    pub frozen: bool,
    entry: String,
    export: Option<String>,
    service: bool,
}

/// The export of a service that is called first, with the state of the earlier code.
const INIT: &str = "init";

impl OperationCode {
    pub(super) fn new(bundle: &PromotionBundle, modules: ModuleSet, frozen: bool) -> Self {
        let content = bundle.content();
        Self {
            id: bundle.id(),
            spec: content.spec.clone(),
            modules: Arc::new(modules),
            frozen,
            entry: content.entry.clone(),
            export: content.export.clone(),
            service: content.service,
        }
    }

    /// The name that the author gives the operation, without `js/`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.spec.name
    }

    /// The module of a service, and its function that answers calls.
    #[must_use]
    pub fn service(&self) -> Option<(&str, &str)> {
        let export = self.export.as_deref().filter(|_| self.service)?;
        Some((&self.entry, export))
    }

    /// The steps to run in a fresh engine, in order. The result of the last step is the operation's output.
    #[must_use]
    pub fn steps(&self, input: Value) -> Vec<IsolateWork> {
        let call = |export: &str, input| IsolateWork::Export {
            module: self.entry.clone(),
            export: export.to_owned(),
            input,
        };
        match &self.export {
            Some(export) if self.service => vec![call(INIT, Value::Null), call(export, input)],
            Some(export) => vec![call(export, input)],
            None => vec![
                IsolateWork::Module {
                    module: self.entry.clone(),
                },
                IsolateWork::Handler {
                    name: self.spec.name.clone(),
                    input,
                },
            ],
        }
    }
}

/// A bundle, with the promoted code that it imports, as `op:<path>@<version>`.
pub(crate) type Imported = (Arc<PromotionBundle>, Vec<String>);

/// Adds the modules of `bundle` to the set, and the promoted code that `imports` names.
pub(super) fn fill(
    set: &mut ModuleSet,
    bundle: &PromotionBundle,
    imports: &[String],
    find: &mut dyn FnMut(&str, u64) -> Option<Imported>,
) -> Result<(), ScriptFailure> {
    for (name, text) in &bundle.content().modules {
        set.insert(name, text.as_str())?;
    }
    fill_imports(set, imports, find, 0)
}

fn fill_imports(
    set: &mut ModuleSet,
    imports: &[String],
    find: &mut dyn FnMut(&str, u64) -> Option<Imported>,
    depth: usize,
) -> Result<(), ScriptFailure> {
    for specifier in imports {
        // Several modules may have the same import.
        if set.resolve("", specifier).is_ok() {
            continue;
        }
        let refuse = |why: &str| {
            ScriptFailure::new(
                FailureCode::NotFound,
                format!("the import {specifier:?} {why}"),
            )
        };
        // The limit also ends a cycle of imports.
        if depth >= IMPORT_DEPTH_MAX {
            return Err(refuse("is that of code that is imported itself too often"));
        }
        let found = of_operation(specifier).and_then(|(path, version)| find(path, version));
        let (bundle, further) = found.ok_or_else(|| refuse("was never promoted"))?;
        let modules = &bundle.content().modules;
        // File names have a meaning only within their own bundle.
        let (1, Some((name, text))) = (modules.len(), modules.iter().next()) else {
            return Err(refuse("has several modules; only one can be imported so"));
        };
        set.insert_as(specifier, text.as_str(), Language::from_specifier(name))?;
        fill_imports(set, &further, find, depth + 1)?;
    }
    Ok(())
}

/// The path and the version of `op:<path>@<version>`.
fn of_operation(specifier: &str) -> Option<(&str, u64)> {
    let (path, version) = specifier.strip_prefix("op:")?.rsplit_once('@')?;
    Some((path, version.parse().ok()?))
}
